"""Between the interchange format and others: the original code's, timm's, ONNX; there and back to the last bit."""

from .architecture import preset_of
from .notes import Notes
from .onnx import onnx_usage, write_onnx
from .original import (
    config_from_original,
    from_original,
    model_from_original,
    original_usage,
    to_original,
    write_original,
)
from .positions import resize_position_embeddings
from .timm import config_from_timm, from_timm, timm_usage, to_timm, write_timm
from .weights import PREPROCESSOR_FILE, ModelWeights, kind_of_names, read_tensors, read_weights

__all__ = [
    "PREPROCESSOR_FILE",
    "ModelWeights",
    "Notes",
    "config_from_original",
    "config_from_timm",
    "from_original",
    "from_timm",
    "kind_of_names",
    "model_from_original",
    "onnx_usage",
    "original_usage",
    "preset_of",
    "read_tensors",
    "read_weights",
    "resize_position_embeddings",
    "timm_usage",
    "to_original",
    "to_timm",
    "write_onnx",
    "write_original",
    "write_timm",
]
