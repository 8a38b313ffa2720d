"""The DINOv2 vision transformer, its heads, and conversion of original checkpoints."""

from .any_vit import VisionTransformer, load_vision_transformer
from .attention import check_attention
from .configuration import PRESETS, Dinov2Config
from .convert import model_from_original, resize_position_embeddings
from .heads import HEADS_FILE, DINOHead, tensors_of
from .modeling import Dinov2Backbone, Dinov2ForImageClassification, Dinov2Layer, Dinov2Model, Dinov2PreTrainedModel

__all__ = [
    "HEADS_FILE",
    "PRESETS",
    "DINOHead",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Layer",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "VisionTransformer",
    "check_attention",
    "load_vision_transformer",
    "model_from_original",
    "resize_position_embeddings",
    "tensors_of",
]
