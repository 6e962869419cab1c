"""The package as it is installed: from a wheel, and from the repository's root without an installation."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAY_WHERE = "import dexcore, dexcore.kernels, dexcore.nn; print(dexcore.__file__); print(dexcore.kernels.__file__)"


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
        return folder / "site", archive.namelist()


def test_a_wheel_holds_every_module_and_the_tables(unpacked_wheel):
    _, names = unpacked_wheel
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dexcore").rglob("*.py")}
    kernels = {f"dexcore/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    assert kernels
    assert (modules | kernels) <= set(names)
    assert {"dexcore/py.typed", "dexcore/data/mvu_sources.csv", "dexcore/data/downstream_tasks.csv"} <= set(names)
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"dexcore"}


def test_an_installed_wheel_has_its_kernels_inside(unpacked_wheel):
    site, _ = unpacked_wheel
    package, kernels = python("-c", f"import sys; sys.path.insert(0, {str(site)!r}); {SAY_WHERE}", cwd=site.parent)
    assert Path(package) == site / "dexcore" / "__init__.py"
    assert Path(kernels) == site / "dexcore" / "kernels" / "__init__.py"


def test_the_repositorys_root_needs_no_installation():
    # -S leaves site-packages out, and with them any installation; what dexcore needs is put back by hand.
    others = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.path += {others!r}; {SAY_WHERE}"
    package, kernels = python("-S", "-c", code, cwd=ROOT)
    assert Path(package) == ROOT / "dexcore" / "__init__.py"
    assert Path(kernels) == ROOT / "kernels" / "__init__.py"
