"""What an architecture is called, and its tables for model cards and inspection."""

from __future__ import annotations

from ...config.resnet import RESNET_PRESETS
from ..base import Description
from .configuration import ResNetConfig


def preset_of(config: ResNetConfig) -> str | None:
    """The preset that `config` has, but for the channels of its images."""
    return next(
        (
            name
            for name, settings in RESNET_PRESETS.items()
            if all(getattr(config, key) == value for key, value in settings.items())
        ),
        None,
    )


def describe_resnet(config: ResNetConfig) -> Description:
    """Describes a backbone of this family."""
    preset = preset_of(config)
    blocks = f"{', '.join(map(str, config.depths))} {config.layer_type} blocks"
    widths = ", ".join(map(str, config.hidden_sizes))
    named = preset and preset != "tiny"
    return Description(
        f"ResNet-{preset.removeprefix('resnet')}" if preset and named else f"ResNet of {blocks} and widths {widths}",
        "residual network",
        {
            "Stages": f"{blocks}, widths {widths}",
            "Stride": f"{config.stride} pixels",
        },
        {
            "preset": preset or "none of ours",
            "backbone": f"width {config.hidden_sizes[-1]}, {blocks}, widths {widths}",
            "stem": f"7 x 7 convolution of {config.num_channels} to {config.embedding_size} channels",
            "stride": f"{config.stride} pixels",
        },
        outputs="`last_hidden_state` is the last map `[B, D, h, w]`, and `pooler_output` `[B, D, 1, 1]` its mean, the "
        "features of the image.",
    )
