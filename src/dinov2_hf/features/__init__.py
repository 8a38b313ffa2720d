"""Frozen features of images: the transform, the backbone, extraction by all processes, the cache."""

from .backbone import Backbone
from .extract import FeatureSet, extract_features
from .transform import EvalTransform, evaluation_transform, preprocessor_config

__all__ = [
    "Backbone",
    "EvalTransform",
    "FeatureSet",
    "evaluation_transform",
    "extract_features",
    "preprocessor_config",
]
