"""Features of images: what a frozen model makes of them, computed once and kept.

``dexcore.evaluate.features(model, task)`` is the function `features` of this package, which bears its name.
"""

import sys
from types import ModuleType
from typing import Any

from dexcore.evaluate.features.encode import Features
from dexcore.evaluate.features.extract import features, features_by_mode
from dexcore.evaluate.features.models import open_model
from dexcore.evaluate.features.table import FeaturesError, FeatureTable
from dexcore.evaluate.features.view import Preprocessing

__all__ = ["FeatureTable", "Features", "FeaturesError", "Preprocessing", "features", "features_by_mode", "open_model"]


class _Callable(ModuleType):
    """A package that is also its function: Python gives ``dexcore.evaluate`` one name for both."""

    def __call__(self, *arguments: Any, **options: Any) -> FeatureTable:
        return features(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
