"""The lower bounds of pyproject.toml as constraints for pip, one ``name==version`` a line.

    python .ci/lower_bounds.py > bounds.txt && pip install -c bounds.txt -e '.[dev]'

Of the requirements that hold here (by their markers) and of every extra but ``xformers``, which is for GPUs.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("xformers",)


def lower_bounds(project: dict) -> list[str]:
    """The constraints of a ``[project]`` table, sorted.

    Raises:
        ValueError: two requirements of a package have different bounds, or one has several.
    """
    extras = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"], *(line for name in extras if name not in LEFT_OUT for line in extras[name])]
    found: dict[str, str] = {}
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == project["name"] or (requirement.marker and not requirement.marker.evaluate()):
            continue
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if not bounds:
            continue
        if len(bounds) > 1 or found.setdefault(requirement.name, bounds[0]) != bounds[0]:
            raise ValueError(f"pyproject.toml: {requirement.name} has more than one lower bound")
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(lower_bounds(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])))
