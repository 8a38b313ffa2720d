"""What formats with fixed parts cannot express."""

from __future__ import annotations

from ..backbones import Dinov2Config


def check_expressible(config: Dinov2Config, format: str, square: bool = False) -> None:
    """Refuses what the code that reads `format` has no switch for.

    Args:
        config: the model to write.
        format: what messages call it.
        square: images and patches must be square.

    Raises:
        ValueError: naming the field.
    """
    remedy = "export to hf or onnx, which keep it"
    if config.hidden_act != "gelu" and not config.use_swiglu_ffn:
        raise ValueError(f"hidden_act={config.hidden_act!r}, but {format} knows gelu alone; {remedy}")
    if config.layer_norm_eps != 1e-6:
        raise ValueError(f"layer_norm_eps={config.layer_norm_eps}, but {format} knows 1e-6 alone; {remedy}")
    for name, sides in (("patch_size", config.patch_height_width), ("image_size", config.grid_size)):
        if square and sides[0] != sides[1]:
            value = getattr(config, name)
            raise ValueError(f"{name}={value} is not square, as {format} asks for; {remedy}, or to timm")
