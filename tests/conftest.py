"""Shared by all tests: offline, deterministic; Triton's kernels are interpreted, but for ``-m gpu``.

Where pytest-xdist is installed they run on as many workers as there are cores, at most `MOST_WORKERS`, with one thread
each, and the tests of a file on one of them; but for single tests (``file::test``), ``-m gpu``, ``--pdb``, ``-s`` and
``--benchmark-enable``. ``-n`` says otherwise. ``--share 1/3`` takes every third file.
"""

import os
import sys

# Before anything imports NumPy: its threads slow the interpreter's small products.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from _pytest.mark.expression import Expression
from hypothesis import HealthCheck, settings

pytest_plugins = ["interpreter"]  # skips by name what cannot be interpreted here

MOST_WORKERS = 8  # more wait for memory and for the longest test
SECONDS_OF_SLOW_TESTS = 1800  # where they hang; other tests' limit is pyproject.toml's

# On a slow machine no test is wrong; under CI hypothesis leaves this check out by itself.
slow = [HealthCheck.too_slow]
settings.register_profile("dexcore", deadline=None, derandomize=True, max_examples=25, suppress_health_check=slow)
settings.load_profile("dexcore")


def pytest_addoption(parser, pluginmanager):
    parser.addoption("--share", type=share, default=(1, 1), metavar="K/N", help="the K-th of N parts of the files")
    # The first hook called: before any other conftest imports timm, and timm Triton, which reads the variable once.
    # A worker of pytest-xdist is given the same options, though not the command line.
    if selects_only_gpu(pluginmanager.getplugin("pytestconfig").known_args_namespace.markexpr):
        # Before cuBLAS starts: without it older PyTorch refuses deterministic algorithms, which fill memory with NaN.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        assert "triton" not in sys.modules, "Triton was imported before it was told to interpret"
        os.environ["TRITON_INTERPRET"] = "1"


def share(text):
    """K and N of "K/N"."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def selects_only_gpu(expression):
    """Whether ``-m expression`` selects tests marked gpu and no others."""

    def selects(*marks):
        return not expression or Expression.compile(expression).evaluate(lambda name, /, **_: name in marks)

    try:
        return (selects("gpu") or selects("gpu", "slow")) and not (selects() or selects("slow"))
    except Exception:  # SyntaxError, before pytest 9 one of its own
        return False  # pytest refuses it


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads them
def pytest_cmdline_main(config):
    options = config.option
    worker = "PYTEST_XDIST_WORKER" in os.environ  # it calls this too: it would start workers of its own, without end
    if not worker and getattr(options, "numprocesses", 0) is None and not options.tx and runs_many(config):
        options.numprocesses = min(cores(), MOST_WORKERS)
        if options.dist == "no":
            options.dist = "load" if is_one_file(config) else "loadfile"  # a file's tests share what is dear


def is_one_file(config):
    return len(config.args) == 1 and os.path.isfile(config.args[0])


def runs_many(config):
    """Whether to run tests on several cores, where the command line does not say."""
    options = config.option
    looked_at = options.usepdb or options.trace or options.capture == "no" or options.collectonly
    timed = getattr(options, "benchmark_enable", False)
    single = any("::" in argument for argument in config.args)
    return not (looked_at or timed or single or selects_only_gpu(options.markexpr) or cores() == 1)


def cores():
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads it
def pytest_configure(config):
    if not getattr(config.option, "benchmark_enable", True):
        config.option.benchmark_disable = True
    several = getattr(config.option, "numprocesses", None)  # workers inherit what is set here
    threads = 1 if several or "PYTEST_XDIST_WORKER" in os.environ else 2
    if not several:  # else it only hands tests to workers, which start the later the more it imports
        import torch

        torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the processes that tests start


def pytest_ignore_collect(collection_path, config):
    # A GPU's machine may lack the packages that other tests import, and its minutes are dear.
    if collection_path.suffix == ".py" and selects_only_gpu(config.option.markexpr):
        return "pytest.mark.gpu" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(trylast=True)  # of the tests that -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    part, parts = config.option.share
    if parts > 1:
        files = sorted({item.path for item in items})
        chosen = {*files[part - 1 :: parts]}
        config.hook.pytest_deselected(items=[item for item in items if item.path not in chosen])
        items[:] = [item for item in items if item.path in chosen]
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS_OF_SLOW_TESTS))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    import triton

    if triton.knobs.runtime.interpret:
        pytest.fail(
            "the kernels would be interpreted: run the tests of a GPU alone, by -m gpu, without TRITON_INTERPRET"
        )


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def no_shards():
    """No copies are kept beside a model of FSDP2, and that of a test before may live on: its graph's hooks hold it."""
    if (state := sys.modules.get("torch.distributed._composable_state")) is not None:
        state._module_state_mapping.clear()
