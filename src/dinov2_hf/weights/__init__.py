"""Weights at any path: opening, writing and describing them, one file for each format."""

from ..backbones.dinov2.describe import preset_of
from .base import Format, Place, Weights
from .cards import model_card
from .export import Exported, export_folder, export_source
from .folder import PREPROCESSOR_FILE
from .formats import FORMATS, open_weights, register_format
from .inspect import inspect_path
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

__all__ = [
    "FORMATS",
    "PREPROCESSOR_FILE",
    "Exported",
    "Format",
    "Notes",
    "Place",
    "Weights",
    "config_from_original",
    "config_from_timm",
    "export_folder",
    "export_source",
    "from_original",
    "from_timm",
    "inspect_path",
    "model_card",
    "model_from_original",
    "onnx_usage",
    "open_weights",
    "original_usage",
    "register_format",
    "preset_of",
    "resize_position_embeddings",
    "timm_usage",
    "to_original",
    "to_timm",
    "write_onnx",
    "write_original",
    "write_timm",
]
