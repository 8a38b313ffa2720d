"""What an architecture is called, and its tables for model cards and inspection."""

from __future__ import annotations

from ...config import PRESETS
from ..base import Description
from .configuration import Dinov2Config

_SIZES = {"tiny": "ViT-tiny", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L", "giant": "ViT-g"}


def preset_of(config: Dinov2Config) -> str | None:
    """The preset whose width, depth, heads and kind of feed-forward network `config` has; patch and size may differ."""
    for name, settings in PRESETS.items():
        wanted = {"use_swiglu_ffn": False, "mlp_ratio": 4, **settings}
        if all(getattr(config, key) == value for key, value in wanted.items()):
            return name
    return None


def size_name(config: Dinov2Config) -> str:
    """Such as `ViT-S/14 with 4 registers`."""
    shape = {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    preset = next((name for name, values in PRESETS.items() if shape.items() <= values.items()), None)
    name = _SIZES[preset] if preset else f"ViT of width {config.hidden_size} and {config.num_hidden_layers} layers"
    height, width = config.patch_height_width
    patch = f"{height}" if height == width else f"{height}x{width}"
    registers = f" with {config.num_register_tokens} registers" if config.num_register_tokens else ""
    return f"{name}/{patch}{registers}" if preset else f"{name}, patch {patch}{registers}"


def describe_dinov2(config: Dinov2Config) -> Description:
    """Describes a backbone of this family."""
    heads, network = config.num_attention_heads, "SwiGLU" if config.use_swiglu_ffn else "MLP"
    layers = f"{config.num_hidden_layers} layer{'s' * (config.num_hidden_layers > 1)}"
    height, width = (count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    patch = " x ".join(map(str, dict.fromkeys(config.patch_height_width)))
    return Description(
        f"DINOv2 {size_name(config)}",
        "vision transformer",
        {
            "Width, layers, heads": f"{config.hidden_size}, {config.num_hidden_layers}, {heads}",
            "Patch": " x ".join(map(str, config.patch_height_width)) + " pixels",
            "Register tokens": str(config.num_register_tokens),
            "Feed-forward": network,
        },
        {
            "preset": preset_of(config) or "none of ours",
            "backbone": f"width {config.hidden_size}, {layers}, {heads} heads, {network}",
            "patch": f"{patch} pixels, {config.num_channels} channels",
            "register tokens": str(config.num_register_tokens),
            "image size": f"{height} x {width}, a grid of {config.grid_size[0]} x {config.grid_size[1]} patches",
            "other sizes": _rule(config),
        },
    )


def _rule(config: Dinov2Config) -> str:
    smooth = "with antialias" if config.interpolate_antialias else "without antialias"
    if config.interpolate_offset:
        offset = f"by a scale factor with offset {config.interpolate_offset:g}"
        return f"position embeddings bicubic {smooth}, {offset} (the original code's rule without registers)"
    return f"position embeddings bicubic {smooth}, to the size"
