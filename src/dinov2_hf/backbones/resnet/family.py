"""Registers the family `resnet`."""

from __future__ import annotations

from ...config.resnet import ResNetModelConfig
from ..base import register_backbone
from .configuration import ResNetConfig
from .describe import describe_resnet
from .modeling import ResNetModel


@register_backbone("resnet", config=ResNetModelConfig, model_types=("resnet",), describe=describe_resnet)
def build_resnet(section: ResNetModelConfig, image_size: int, drop_path_rate: float) -> ResNetModel:
    """A backbone with fresh weights; images of any size are alike to it."""
    return ResNetModel(ResNetConfig(num_channels=section.num_channels, **section.architecture()))
