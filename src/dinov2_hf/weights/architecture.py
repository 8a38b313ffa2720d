"""What formats with fixed parts cannot express."""

from __future__ import annotations

from typing import Any


def check_expressible(config: Any, format: str, square: bool = False, any_epsilon: bool = False) -> None:
    """Refuses what the code that reads `format` has no switch for.

    Args:
        config: of the model to write, a `Dinov2Config` or `ViTConfig`.
        format: what messages call it.
        square: images and patches must be square.
        any_epsilon: LayerNorm's epsilon is an argument there.

    Raises:
        ValueError: naming the field.
    """
    remedy = "export to hf or onnx, which keep it"
    if config.hidden_act != "gelu" and not getattr(config, "use_swiglu_ffn", False):
        raise ValueError(f"hidden_act={config.hidden_act!r}, but {format} knows gelu alone; {remedy}")
    if config.layer_norm_eps != 1e-6 and not any_epsilon:
        raise ValueError(f"layer_norm_eps={config.layer_norm_eps}, but {format} knows 1e-6 alone; {remedy}")
    for name, sides in (("patch_size", config.patch_height_width), ("image_size", config.grid_size)):
        if square and sides[0] != sides[1]:
            value = getattr(config, name)
            raise ValueError(f"{name}={value} is not square, as {format} asks for; {remedy}, or to timm")


def mlp_ratio(config: Any) -> int | float:
    """Width of the MLP of a `ViTConfig` as a multiple of that of the tokens: rounded down, the product is exact."""
    width, hidden = int(config.hidden_size), int(config.intermediate_size)
    return round((hidden + 0.5) / width, 6) if hidden % width else hidden // width
