"""The rooms and the one direction between them; what importing dexcore costs."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room may use itself and what is named here; everything may use extras.
MAY_USE = {
    "kernels": set(),
    "ops": {"kernels"},
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "data": set(),
    "measures": set(),
    "report": {"measures", "data"},
    "engine": {"ops"},
    "evaluate": {"engine", "report", "measures", "models", "data", "nn", "ops"},
    "train": {"engine", "evaluate", "report", "models", "data", "nn", "ops", "kernels"},
    "commands": {"train", "evaluate", "engine", "report", "models", "data", "nn"},
}


# Inside dexcore.data: an image's way. What lies beside the rooms (modality, record, normalize) uses none of them;
# build, which walks the whole way, and the package itself use all.
MAY_USE_IN_DATA = {
    "readers": set(),
    "store": set(),
    "synthetic": set(),
    "sources": set(),
    "assemble": {"synthetic", "readers", "sources", "store"},
    "feed": {"store"},
}


def imported_rooms(path, inside="dexcore"):
    """Rooms of ``inside`` that a file imports, anywhere in it."""
    depth = inside.count(".") + 1
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[depth] for name in names if name.startswith(f"{inside}.")}
    return rooms


@pytest.mark.parametrize("room", MAY_USE)
def test_arrows_point_down_only(room):
    folder = ROOT / "kernels" if room == "kernels" else ROOT / "dexcore" / room
    files = list(folder.rglob("*.py"))
    assert files
    for path in files:
        foreign = (imported_rooms(path) & set(MAY_USE)) - {room} - MAY_USE[room]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_an_images_way_has_no_step_back():
    data = ROOT / "dexcore" / "data"
    assert {path.name for path in data.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(
        MAY_USE_IN_DATA
    )
    for path in data.rglob("*.py"):
        room = path.relative_to(data).parts[0]
        if room in ("__init__.py", "build.py"):
            continue
        foreign = (imported_rooms(path, "dexcore.data") & set(MAY_USE_IN_DATA)) - {room}
        foreign -= MAY_USE_IN_DATA.get(room, set())
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_no_two_test_files_are_one_module():
    """pytest imports them by their names, with that of the folder where it is a package."""
    modules = Counter(
        f"{path.parent.name}.{path.stem}" if (path.parent / "__init__.py").is_file() else path.stem
        for path in (ROOT / "tests").rglob("test_*.py")
    )
    assert [name for name, count in modules.items() if count > 1] == []


def test_every_room_is_known():
    rooms = {path.name for path in (ROOT / "dexcore").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_USE) - {"kernels"}


def test_importing_the_layers_brings_neither_kernels_nor_data_nor_trainer():
    code = (
        "import sys, dexcore.nn, dexcore.models; "
        "print([m for m in sys.modules if m.startswith(('dexcore.data', 'dexcore.train', 'dexcore.evaluate', "
        "'dexcore.report', 'dexcore.measures', 'dexcore.kernels', 'matplotlib', 'pyarrow', 'cv2', 'pydicom', "
        "'nibabel', 'tyro'))])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
