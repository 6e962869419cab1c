"""The package as it is installed: from a wheel, with nothing but what it requires; and from the repository's root."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "report"))

from made_runs import make_evaluation, write_run  # noqa: E402

PACKAGES_OF_EXTRAS = ("tyro", "pyarrow", "cv2", "matplotlib", "pydicom", "nibabel", "nilearn", "skimage")
MOST_MODULES_BEYOND_TIMM = 60
SIZES = (
    "base_patch16_224",
    "base_patch16_256",
    "huge_patch14_224",
    "large_patch16_224",
    "small_patch16_224",
    "tiny_patch16_224",
)
SAY_WHERE = "import dexcore, dexcore.kernels, dexcore.nn; print(dexcore.__file__); print(dexcore.kernels.__file__)"


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module", autouse=True)
def _nothing_from_pythonpath():
    """Else pip takes a dexcore found there for an installed one, and what a new environment holds proves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what a wheel is built from, without what earlier builds left, and with rooms that nothing names."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("dexcore", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        room = folder / name / "new_room"
        room.mkdir()
        (room / "__init__.py").touch()
        (room / "table.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def built_wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked_wheel(built_wheel):
    site = built_wheel.parent / "site"
    with zipfile.ZipFile(built_wheel) as archive:
        archive.extractall(site)
        return site, archive.namelist()


@pytest.fixture(scope="module")
def bare_environment(built_wheel, tmp_path_factory):
    """The folder of a new environment's commands: what ``pip install dexcore`` makes, without fetching PyTorch again.

    dexcore is installed from its wheel; what it requires, and what that requires in turn, is linked from here.
    """
    folder = tmp_path_factory.mktemp("environment")
    python("-m", "venv", "--without-pip", str(folder), cwd=folder)
    commands = folder / "bin"
    install = ("install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", str(built_wheel))
    python("-m", "pip", "--python", str(commands / "python"), *install, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (described,) = site.glob("dexcore-*.dist-info")
    for required in requirements(PathDistribution(described)):
        for top in {file.parts[0] for file in required.files} - {"..", "__pycache__"}:
            if not (site / top).exists():  # several packages of nvidia share a folder
                (site / top).symlink_to(Path(required.locate_file(top)))
    return commands


def requirements(package: Distribution) -> list[Distribution]:
    """What a package requires without extras, and so on."""
    found: dict[str, Distribution] = {}
    waiting = [(package, "")]
    while waiting:
        needing, extra = waiting.pop()
        for line in needing.requires or []:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                key = f"{requirement.name}[{wanted}]"
                if key not in found:
                    found[key] = distribution(requirement.name)
                    waiting.append((found[key], wanted))
    return list(found.values())


def test_a_wheel_holds_every_module_and_table_of_the_tree_and_nothing_else(sources, unpacked_wheel):
    _, names = unpacked_wheel
    files = [path for room in ("dexcore", "kernels") for path in (sources / room).rglob("*") if path.is_file()]
    expected = {path.relative_to(sources).as_posix() for path in files}
    expected = {name if name.startswith("dexcore/") else f"dexcore/{name}" for name in expected}
    assert {"dexcore/py.typed", "dexcore/data/mvu_sources.csv", "dexcore/kernels/configs.json"} <= expected
    assert {"dexcore/new_room/table.json", "dexcore/kernels/new_room/__init__.py"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


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


_USE_THE_LAYERS = """
import sys, importlib.util
import dexcore.nn, timm, torch
from dexcore.nn import aux_losses, collapse, set_mode, update_directors, upcycle

TINY = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
stock = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
images = torch.randn(4, 3, 32, 32)
expected = stock(images)
model = upcycle(stock, num_experts=4, top_k=2).eval()
assert (model(images) - expected).abs().max() < 1e-5
model.train()
(model(images).sum() + aux_losses(model).align).backward()
assert model.blocks[0].mlp.experts.fc1.weight.grad.abs().sum() > 0
update_directors(model, 0.9)
set_mode(model, "director")
alone = model.eval()(images)
assert torch.equal(collapse(model, to="director")(images), alone)
timm.create_model("dex_vit_tiny_patch16_224", **TINY).save_pretrained("saved")
dexcore.models.DEXVisionTransformer.from_pretrained("saved")(images)

print(dexcore.__file__)
print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])
print([m for m in sys.modules if m.startswith(("dexcore.kernels", "dexcore.data", "dexcore.train", "dexcore.report"))])
"""


def test_a_wheel_without_extras_has_the_layers_and_loads_nothing_else(bare_environment, tmp_path):
    code = [str(bare_environment / "python"), "-c", _USE_THE_LAYERS, *PACKAGES_OF_EXTRAS]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package, extras, rooms = done.stdout.splitlines()
    assert Path(package).is_relative_to(bare_environment.parent / "lib")
    assert (extras, rooms) == ("[]", "[]")


def test_importing_dexcore_after_timm_registers_models_and_ops_and_brings_little(bare_environment, tmp_path):
    """What takes time is modules: a clock would measure who else has the machine."""
    code = (
        "import sys, timm; before = set(sys.modules); import dexcore, torch; "
        "print(*sorted(set(sys.modules) - before)); torch.ops.dexcore.expert_mlp.default; "
        "print(*timm.list_models('dex_vit*')); dexcore.models; print(*sorted(set(sys.modules) - before))"
    )
    command = [str(bare_environment / "python"), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, registered, told = (line.split() for line in done.stdout.splitlines())
    assert registered == ["dex_vit", *(f"dex_vit_{size}" for size in SIZES)]
    assert not any(name.startswith(("dexcore.nn", "dexcore.models")) for name in first)
    assert {name.partition(".")[0] for name in told} - sys.stdlib_module_names <= {"dexcore", "einops", "timm", "torch"}
    assert len([name for name in told if not name.startswith("dexcore.")]) < MOST_MODULES_BEYOND_TIMM


def test_the_installed_command_says_which_extra_it_needs(bare_environment, tmp_path):
    command = str(bare_environment / "dexcore")
    run = write_run(tmp_path / "run", make_evaluation())
    told = subprocess.run([command, "report", str(run)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: ")
    assert "pip install 'dexcore[train]'" in told.stderr
    assert told.stderr.count("\n") == 1


def test_pretraining_without_its_extra_says_so(bare_environment, tmp_path):
    code = "from dexcore.train.command import main; raise SystemExit(main([]))"
    command = [str(bare_environment / "python"), "-c", code]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stderr == "error: tyro is not installed; it comes with an extra: pip install 'dexcore[train]'\n"
    assert list(tmp_path.iterdir()) == []
