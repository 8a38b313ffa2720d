"""Frozen features of images: the backbone, extraction by all processes, the cache."""

import warnings
from typing import Any

from .extract import FeatureSet, gather_features
from .extractor import FeatureExtractor
from .open import open_backbone

__all__ = [
    "FeatureExtractor",
    "FeatureSet",
    "gather_features",
    "open_backbone",
]


def __getattr__(name: str) -> Any:
    """The function of 0.5 that is called `gather_features` now."""
    if name != "extract_features":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "dinov2_hf.features.extract_features is called gather_features now, and dinov2_hf.extract_features takes a "
        "model and images; the old name goes with 1.0",
        DeprecationWarning,
        stacklevel=2,
    )
    return gather_features
