"""The networks that are trained and evaluated, one folder or file for each family."""

from .dinov2 import (
    PRESETS,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Layer,
    Dinov2Model,
    Dinov2PreTrainedModel,
    check_attention,
)
from .frozen import VisionTransformer, load_vision_transformer

__all__ = [
    "PRESETS",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Layer",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "VisionTransformer",
    "check_attention",
    "load_vision_transformer",
]
