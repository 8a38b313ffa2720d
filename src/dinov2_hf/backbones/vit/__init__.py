"""The vision transformer of DINO and iBOT as transformers models."""

from .configuration import ViTConfig
from .family import build_vit
from .modeling import ViTLayer, ViTModel

__all__ = ["ViTConfig", "ViTLayer", "ViTModel", "build_vit"]
