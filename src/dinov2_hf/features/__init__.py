"""Frozen features of images: the backbone, extraction by all processes, the cache."""

from .backbone import Backbone
from .extract import FeatureSet, extract_features
from .open import open_backbone

__all__ = [
    "Backbone",
    "FeatureSet",
    "extract_features",
    "open_backbone",
]
