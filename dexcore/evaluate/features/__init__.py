"""Features of images: what a frozen model makes of them, computed once and kept."""

from dexcore.evaluate.features.encode import Features
from dexcore.evaluate.features.extract import features, features_by_mode
from dexcore.evaluate.features.models import open_model
from dexcore.evaluate.features.table import FeaturesError, FeatureTable
from dexcore.evaluate.features.view import Preprocessing

__all__ = ["FeatureTable", "Features", "FeaturesError", "Preprocessing", "features", "features_by_mode", "open_model"]
