"""What an architecture is called, and its tables for model cards and inspection."""

from __future__ import annotations

from ...config import VIT_PRESETS
from ..base import Description
from .configuration import ViTConfig

_SIZES = {"tiny": "ViT-T", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L"}


def preset_of(config: ViTConfig) -> str | None:
    """The preset whose width, depth, heads and feed-forward width `config` has; patch and size may differ."""
    for name, settings in VIT_PRESETS.items():
        wanted = {"intermediate_size": 4 * settings["hidden_size"], **settings}
        if all(getattr(config, key) == value for key, value in wanted.items()):
            return name
    return None


def describe_vit(config: ViTConfig) -> Description:
    """Describes a backbone of this family."""
    preset, heads = preset_of(config), config.num_attention_heads
    layers = f"{config.num_hidden_layers} layer{'s' * (config.num_hidden_layers > 1)}"
    height, width = (count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    patch = "x".join(map(str, dict.fromkeys(config.patch_height_width)))
    size = f"ViT of width {config.hidden_size} and {layers}, patch {patch}"
    smooth = "with" if config.interpolate_antialias else "without"
    rule = (
        f"by a scale factor with offset {config.interpolate_offset:g}" if config.interpolate_offset else "to the size"
    )
    return Description(
        f"{_SIZES[preset]}/{patch}" if preset else size,
        "vision transformer",
        {
            "Width, layers, heads": f"{config.hidden_size}, {config.num_hidden_layers}, {heads}",
            "Patch": " x ".join(map(str, config.patch_height_width)) + " pixels",
            "Feed-forward": f"MLP of width {config.intermediate_size}",
        },
        {
            "preset": preset or "none of ours",
            "backbone": f"width {config.hidden_size}, {layers}, {heads} heads, MLP of width {config.intermediate_size}",
            "patch": f"{patch} pixels, {config.num_channels} channels",
            "mask token": "yes" if config.use_mask_token else "no",
            "image size": f"{height} x {width}, a grid of {config.grid_size[0]} x {config.grid_size[1]} patches",
            "other sizes": f"position embeddings bicubic {smooth} antialias, {rule}",
        },
        outputs="`pooler_output` is absent: the CLS token is `last_hidden_state[:, 0]`. Without "
        "`add_pooling_layer=False` the stock class adds a pooler with random weights. "
        "Images of another size need `interpolate_pos_encoding=True`.",
    )
