"""Optional dependencies: imported when first needed, with an error that names the extra."""

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of dexcore brings it.

    Raises:
        MissingExtraError: ``module`` (or a package it stands in) is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise MissingExtraError(
            f"{module} is not installed; it comes with an extra: pip install 'dexcore[{extra}]'", name=error.name
        ) from error
