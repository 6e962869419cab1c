"""`import kernels` is Hugging Face's, from the repository's root too; ours is `dexcore.kernels`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _python(code, *paths):
    """What Python prints from the repository's root, with more places to import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def theirs(tmp_path):
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from kernels.layer import get_kernel\n__version__ = '9.9'\n")
    (package / "layer.py").write_text("def get_kernel(name):\n    return f'their {name}'\n")
    return package.parent


@pytest.mark.parametrize("code", ["import kernels", "from kernels import *; import kernels"])
def test_it_is_theirs_where_that_is_installed(theirs, code):
    code += "; import kernels.layer; print(kernels.get_kernel('relu'), kernels.__version__, kernels.__file__)"
    done = _python(code, theirs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["their", "relu", "9.9", str(theirs / "kernels" / "__init__.py")]


def test_theirs_and_ours_live_side_by_side(theirs):
    done = _python(
        "import kernels, dexcore.kernels as ours; print(kernels.__version__, ours.__name__, ours.warm_up.__module__)",
        theirs,
    )
    assert done.stdout.split() == ["9.9", "dexcore.kernels", "dexcore.kernels.warmup"], done.stderr


def test_it_is_not_there_where_theirs_is_not_installed():
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\nimport kernels"
    done = _python(code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: No module named 'kernels': ")
    assert "imported as dexcore.kernels" in last


def test_whoever_asks_whether_theirs_is_there_gets_an_import_error():
    code = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n    from kernels import get_kernel\nexcept ImportError:\n    print('without')\n"
        "print('kernels' in sys.modules)"
    )
    done = _python(code)
    assert done.stdout.split() == ["without", "False"], done.stderr


def test_nothing_here_imports_the_top_level_name():
    for folder in ("dexcore", "kernels", "bench", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not line.strip().startswith(("import kernels", "from kernels")), path
