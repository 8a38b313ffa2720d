"""Registers the family `dinov2`."""

from __future__ import annotations

from ...config import ModelConfig
from ..base import register_backbone
from ..transformer.attention import choose_attention
from .configuration import Dinov2Config
from .describe import describe_dinov2
from .modeling import Dinov2ForImageClassification, Dinov2Model


@register_backbone(
    "dinov2",
    config=ModelConfig,
    classifier=Dinov2ForImageClassification,
    model_types=("dinov2", "dinov2_with_registers"),
    describe=describe_dinov2,
)
def build_dinov2(section: ModelConfig, image_size: int, drop_path_rate: float) -> Dinov2Model:
    """A backbone with fresh weights, with the attention that is fastest on this machine where `auto` is set.

    Raises:
        ValueError: the package of `model.attn_implementation` is not installed.
    """
    architecture = section.architecture() | {"drop_path_rate": drop_path_rate, "image_size": image_size}
    architecture["attn_implementation"] = choose_attention(section.attn_implementation)
    return Dinov2Model(Dinov2Config.preset(section.preset, **architecture))
