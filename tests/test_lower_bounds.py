""".ci/lower_bounds.py: what it makes of a project's requirements."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lower_bounds():
    spec = importlib.util.spec_from_file_location("lower_bounds", ROOT / ".ci" / "lower_bounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lower_bounds


def test_a_bound_of_every_requirement_that_holds_here_is_a_constraint(lower_bounds):
    project = {
        "name": "ours",
        "dependencies": ["torch>=2.10,<3", "triton>=3.6; platform_system == 'Nowhere'", "tqdm"],
        "optional-dependencies": {"more": ["ours[other]", "numpy>=2.0"], "xformers": ["xformers>=1"]},
    }
    assert lower_bounds(project) == ["numpy==2.0", "torch==2.10"]


def test_two_bounds_of_a_package_are_refused(lower_bounds):
    project = {"name": "ours", "dependencies": ["numpy>=2.0"], "optional-dependencies": {"more": ["numpy>=2.1"]}}
    with pytest.raises(ValueError, match="numpy has more than one lower bound"):
        lower_bounds(project)


def test_every_requirement_of_this_project_but_the_types_has_a_bound(lower_bounds):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = {line for lines in [project["dependencies"], *project["optional-dependencies"].values()] for line in lines}
    unbound = {line for line in lines if ">=" not in line and not line.startswith(("dexcore[", "types-"))}
    assert not unbound
    assert any(line.startswith("torch==") for line in lower_bounds(project))
