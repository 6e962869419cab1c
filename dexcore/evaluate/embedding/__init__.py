"""Features of images: what a frozen model makes of them, computed once and kept."""

from dexcore.evaluate.embedding.encode import Features
from dexcore.evaluate.embedding.extract import features, features_by_mode
from dexcore.evaluate.embedding.models import open_model
from dexcore.evaluate.embedding.table import FeaturesError, FeatureTable
from dexcore.evaluate.embedding.view import Preprocessing

__all__ = ["FeatureTable", "Features", "FeaturesError", "Preprocessing", "features", "features_by_mode", "open_model"]
