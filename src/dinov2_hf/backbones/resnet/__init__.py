"""The residual network that DINO trains, as transformers models."""

from .configuration import ResNetConfig
from .family import build_resnet
from .modeling import ResNetModel, ResNetStage

__all__ = ["ResNetConfig", "ResNetModel", "ResNetStage", "build_resnet"]
