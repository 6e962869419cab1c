"""How the tests themselves are run: on several cores, on a GPU's machine, from a checkout that is not installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ("pydicom", "nibabel", "nilearn", "skimage", "cv2", "pyarrow", "matplotlib", "tyro", "yaml", "onnx")

ON_A_BARE_MACHINE = f"""
import os, sys
sys.modules.update(dict.fromkeys({OPTIONAL}, None))
import pytest
code = pytest.main(["--collect-only", "-q", "-mgpu"])
print("interpreted:", "TRITON_INTERPRET" in os.environ)
print("from:", sys.modules["dexcore.kernels"].__file__)
sys.exit(code)
"""

TESTS = """
import os
import pytest
import torch
import triton


@pytest.mark.gpu
def test_on_a_gpu():
    assert not triton.knobs.runtime.interpret


@pytest.fixture(scope="module")
def dear():
    open("made-in-" + os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())), "x").close()  # fails the second time


@pytest.mark.usefixtures("dear")
def test_interpreted():
    assert triton.knobs.runtime.interpret


@pytest.mark.usefixtures("dear")
def test_processes_that_a_test_starts_have_its_threads():
    assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())
"""


def environment(**more):
    hidden = ("TRITON_INTERPRET", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTHONPATH", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in hidden} | more


@pytest.fixture(scope="module")
def selects_only_gpu():
    spec = importlib.util.spec_from_file_location("suite", ROOT / "tests" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.selects_only_gpu


@pytest.mark.parametrize("expression", ["gpu", "gpu and not slow", "slow and gpu", "(gpu)"])
def test_kernels_are_compiled_where_tests_of_a_gpu_alone_are_chosen(selects_only_gpu, expression):
    assert selects_only_gpu(expression)


@pytest.mark.parametrize(
    "expression", ["", "not slow and not gpu", "slow", "not slow", "slow or gpu", "not gpu", "no expression ("]
)
def test_and_interpreted_elsewhere(selects_only_gpu, expression):
    assert not selects_only_gpu(expression)


@pytest.fixture
def suite(tmp_path):
    """Runs pytest on two tests beside a copy of this suite's conftest; ``gpu``: PyTorch says that there is one."""

    def run(*arguments, gpu=False):
        shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
        if gpu:
            with (tmp_path / "conftest.py").open("a") as file:
                file.write("\nimport torch\n\ntorch.cuda.is_available = lambda: True\n")
        (tmp_path / "test_it.py").write_text(TESTS)
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\naddopts = -m 'not slow and not gpu'\nmarkers =\n  gpu\n  slow\n"
        )
        command = [sys.executable, "-m", "pytest", *arguments]
        beside = environment(PYTHONPATH=str(ROOT / "tests"))  # what the conftest imports
        return subprocess.run(command, cwd=tmp_path, env=beside, capture_output=True, text=True, check=False)

    return run


def test_a_worker_of_xdist_compiles_the_kernels_too(suite):
    done = suite("-mgpu", "-n1")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_test_of_a_gpu_that_would_be_interpreted_fails(suite):
    done = suite("-m", "", "-n0", gpu=True)
    assert "2 passed" in done.stdout
    assert "1 error" in done.stdout
    assert "the kernels would be interpreted: run the tests of a GPU alone" in done.stdout


def test_a_plain_run_uses_the_cores_one_for_each_file_and_a_single_test_does_not(suite):
    workers = min(len(os.sched_getaffinity(0)), 8)
    if workers == 1:
        pytest.skip("one core")
    several = suite().stdout
    assert f"{workers} workers" in several
    assert "2 passed" in several
    single = suite("test_it.py::test_interpreted").stdout
    assert "1 passed" in single
    assert "workers" not in single


def test_the_shares_of_the_files_are_all_of_them_each_once():
    def files(*arguments):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", *arguments, "tests/engine"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
        return {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}

    first, second = files("--share", "1/2"), files("--share", "2/2")
    assert first
    assert second
    assert not first & second
    assert first | second == files()


def test_tests_of_a_gpu_are_found_where_only_the_core_is_installed_and_the_checkout_is_not():
    # Without site's .pth files nothing that is installed in editable form is found.
    folders = os.pathsep.join(entry for entry in sys.path if entry.endswith("site-packages"))
    bare = environment(PYTHONPATH=folders, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-S", "-P", "-c", ON_A_BARE_MACHINE]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/ops/test_triton_on_gpu.py::test_twice_the_same_bits" in done.stdout
    assert "interpreted: False" in done.stdout
    assert f"from: {ROOT / 'kernels'}" in done.stdout


def test_no_fixture_of_a_folder_lasts_to_the_end_of_all_tests():
    # Where a folder of tests is no package, scope "package" is scope "session", and what it patches stays patched.
    scope = re.compile(r"scope=[\"']package")
    folders = {path.parent for path in ROOT.glob("tests/**/*.py") if scope.search(path.read_text(encoding="utf-8"))}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
