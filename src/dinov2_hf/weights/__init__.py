"""Weights at any path: reading, writing and describing them, one file for each format."""

from .architecture import preset_of
from .cards import model_card
from .export import Exported, export_source
from .folder import export_folder
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
from .read import PREPROCESSOR_FILE, ModelWeights, kind_of_names, read_tensors, read_weights
from .source import OpenSource, open_source
from .timm import config_from_timm, from_timm, timm_usage, to_timm, write_timm

__all__ = [
    "PREPROCESSOR_FILE",
    "Exported",
    "ModelWeights",
    "Notes",
    "OpenSource",
    "config_from_original",
    "config_from_timm",
    "export_folder",
    "export_source",
    "from_original",
    "from_timm",
    "inspect_path",
    "kind_of_names",
    "model_card",
    "model_from_original",
    "onnx_usage",
    "open_source",
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
