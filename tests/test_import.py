"""What `import dexcore` brings, and what follows when others are imported. tests/test_package.py has both orders."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import dexcore
from dexcore.imports import import_after

ROOT = Path(__file__).parents[1]


def test_what_makes_a_store_of_images_brings_neither_torch_nor_timm():
    code = (
        "import sys, dexcore, dexcore.cli, dexcore.data, dexcore.data.assemble.build, dexcore.report.store_page; "
        "print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_the_rooms_of_the_layers_are_attributes_and_others_are_none():
    assert dexcore.nn.DEXMlp.__name__ == "DEXMlp"
    assert dexcore.ops.route.__name__ == "route"
    assert dexcore.models.MaskedAutoencoder.__name__ == "MaskedAutoencoder"
    with pytest.raises(AttributeError, match="module 'dexcore' has no attribute 'layers'"):
        _ = dexcore.layers


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A function that writes a module of one line, to be imported by its name."""
    monkeypatch.syspath_prepend(tmp_path)
    finders, known = list(sys.meta_path), set(sys.modules)
    yield lambda name, line: (tmp_path / f"{name}.py").write_text(line)
    sys.meta_path[:] = finders
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_module_follows_another_each_once_and_leaves_no_trace_of_how(modules):
    modules("leading", "rest = []; loader = __spec__.loader")
    modules("following", "import leading; leading.rest.append('following')")
    modules("last", "import leading; leading.rest.append('last')")
    import_after("leading", "following")
    assert importlib.util.find_spec("leading").origin.endswith("leading.py")  # who only looks brings nothing
    assert {"leading", "following"}.isdisjoint(sys.modules)
    leading = importlib.import_module("leading")
    assert leading.rest == ["following"]
    import_after("leading", "last")
    assert leading.rest == ["following", "last"]
    assert isinstance(leading.loader, importlib.machinery.SourceFileLoader)
    assert leading.__loader__ is leading.__spec__.loader is leading.loader


def test_a_leader_that_fails_or_is_missing_says_what_it_always_said(modules):
    modules("failing", "raise RuntimeError('no device')")
    for name in ("failing", "missing"):
        import_after(name, "never")
    with pytest.raises(RuntimeError, match="no device"):
        importlib.import_module("failing")
    assert importlib.util.find_spec("missing") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'missing'"):
        importlib.import_module("missing")
    modules("failing", "# now it can be imported, and more")
    modules("never", "")
    importlib.invalidate_caches()
    importlib.import_module("failing")
    assert "never" in sys.modules
