"""Frozen features of images: the backbone, extraction by all processes, the cache."""

from .extract import FeatureSet, extract_features
from .extractor import FeatureExtractor
from .open import open_backbone

__all__ = [
    "FeatureExtractor",
    "FeatureSet",
    "extract_features",
    "open_backbone",
]
