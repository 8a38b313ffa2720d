"""The DINOv2 vision transformer as transformers models."""

from ...config import PRESETS
from ..transformer.attention import check_attention
from .configuration import Dinov2Config
from .family import build_dinov2
from .modeling import Dinov2Backbone, Dinov2ForImageClassification, Dinov2Layer, Dinov2Model, Dinov2PreTrainedModel

__all__ = [
    "PRESETS",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Layer",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "build_dinov2",
    "check_attention",
]
