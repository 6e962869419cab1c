"""Features of images: what a frozen model makes of them, computed once and kept."""

from dexcore.evaluate.features.table import FeaturesError, FeatureTable

__all__ = ["FeatureTable", "FeaturesError"]
