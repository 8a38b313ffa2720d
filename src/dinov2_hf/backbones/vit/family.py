"""Registers the family `vit`."""

from __future__ import annotations

from ...config import ViTModelConfig
from ..base import register_backbone
from ..transformer.attention import choose_attention
from .configuration import ViTConfig
from .describe import describe_vit
from .modeling import ViTModel


@register_backbone(
    "vit",
    config=ViTModelConfig,
    model_types=("vit",),
    describe=describe_vit,
    loading="add_pooling_layer=False",
)
def build_vit(section: ViTModelConfig, image_size: int, drop_path_rate: float) -> ViTModel:
    """A backbone with fresh weights, with the attention that is fastest on this machine where `auto` is set.

    Raises:
        ValueError: the package of `model.attn_implementation` is not installed.
    """
    architecture = section.architecture() | {"drop_path_rate": drop_path_rate, "image_size": image_size}
    architecture["attn_implementation"] = choose_attention(section.attn_implementation)
    return ViTModel(ViTConfig.preset(section.preset, **architecture))
