"""Between the tensor names of the original DINOv2 code and those of the interchange format.

Original state dicts come in variants: transformer blocks chunked for FSDP (`blocks.0.3.…`), wrapped
(`teacher.backbone.…`, `module.…`), with or without registers, with MLP or SwiGLU. All of them are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from .configuration import Dinov2Config
from .embeddings import interpolate_positions
from .modeling import Dinov2Model

_TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_QKV = ("query", "key", "value")
_WRAPPERS = ("module.", "teacher.", "student.", "backbone.", "_fsdp_wrapped_module.")


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict under original names, renamed to the interchange format (fused qkv split).

    Raises:
        ValueError: a name that is not part of a DINOv2 backbone.
    """
    converted: dict[str, Tensor] = {}
    for original, tensor in state_dict.items():
        name = original
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if name in _TOP:
            converted[_TOP[name]] = tensor
            continue
        # chunked blocks keep their global index behind the chunk's: blocks.<chunk>.<layer>.
        match = re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if match is None:
            raise ValueError(
                f"tensor {original!r} does not belong to a DINOv2 backbone; pass the backbone's tensors alone "
                "(of a training checkpoint, those under 'teacher.backbone.')"
            )
        layer, part, suffix = match[1], match[2], match[3] or ""
        prefix = f"encoder.layer.{layer}."
        if part == "attn.qkv":
            for target, piece in zip(_QKV, tensor.chunk(3)):
                converted[f"{prefix}attention.attention.{target}{suffix}"] = piece.clone()
        elif part in _BLOCK:
            converted[f"{prefix}{_BLOCK[part]}{suffix}"] = tensor
        else:
            raise ValueError(f"tensor {original!r} does not belong to a DINOv2 backbone (unknown block part {part!r})")
    return converted


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_original`, with unchunked blocks and fused qkv."""
    top = {target: source for source, target in _TOP.items()}
    block = {target: source for source, target in _BLOCK.items()}
    original: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name in top:
            original[top[name]] = tensor
            continue
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if match is None:
            raise ValueError(f"tensor {name!r} does not belong to a Dinov2Model")
        layer, part, suffix = match[1], match[2], match[3] or ""
        if part == "attention.attention.query":
            pieces = [state_dict[name.replace(".query", f".{target}")] for target in _QKV]
            original[f"blocks.{layer}.attn.qkv{suffix}"] = torch.cat(pieces)
        elif part in block:
            original[f"blocks.{layer}.{block[part]}{suffix}"] = tensor
        elif not part.startswith("attention.attention."):
            raise ValueError(f"tensor {name!r} does not belong to a Dinov2Model")
    return original


def config_from_original(state_dict: Mapping[str, Tensor], **overrides) -> Dinov2Config:
    """The architecture that an original state dict was saved from, read off its shapes.

    The number of heads leaves no trace in the shapes: heads have 64 channels as in all published models, unless
    `num_attention_heads` says otherwise. Without registers the position embeddings are interpolated as the original
    code does it (scale factor with offset 0.1), with registers to a size with antialias.
    """
    converted = from_original(state_dict)
    projection = converted["embeddings.patch_embeddings.projection.weight"]
    positions = converted["embeddings.position_embeddings"]
    registers = converted.get("embeddings.register_tokens")
    side = round((positions.shape[1] - 1) ** 0.5)
    width, channels, *patch = projection.shape
    swiglu = "encoder.layer.0.mlp.weights_in.weight" in converted
    settings = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in converted if name.startswith("encoder.")),
        "num_attention_heads": max(width // 64, 1),
        "use_swiglu_ffn": swiglu,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "image_size": side * patch[0] if patch[0] == patch[1] else [side * patch[0], side * patch[1]],
        "num_channels": channels,
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in converted,
        "interpolate_offset": 0.1 if registers is None else 0.0,
    }
    if not swiglu:
        settings["mlp_ratio"] = converted["encoder.layer.0.mlp.fc1.weight"].shape[0] // width
    return Dinov2Config(**{**settings, **overrides})


def model_from_original(state_dict: Mapping[str, Tensor] | str | PathLike, **overrides) -> Dinov2Model:
    """A `Dinov2Model` with the weights of an original state dict or `.pth` file.

    Args:
        state_dict: tensors under original names, or the path of a file with them (loaded with `weights_only=True`).
        overrides: arguments of `Dinov2Config` that the shapes cannot tell, such as `num_attention_heads`.
    """
    if not isinstance(state_dict, Mapping):
        state_dict = torch.load(state_dict, map_location="cpu", weights_only=True)
    model = Dinov2Model(config_from_original(state_dict, **overrides))
    model.load_state_dict(from_original(state_dict))
    return model.eval()


def resize_position_embeddings(
    state_dict: Mapping[str, Tensor], config: Dinov2Config, source: Dinov2Config | None = None
) -> dict[str, Tensor]:
    """A backbone's state dict with its position embeddings resampled to the grid of `config`.

    Features of images of `config.image_size` stay what resampling in every forward of the source would give.

    Args:
        state_dict: of the source.
        config: whose grid is wanted.
        source: the model it comes from, whose grid it has and whose rule is followed; by default a square grid and the
            rule of `config`.

    Raises:
        ValueError: no position embeddings, or a grid that is not square where nothing tells its shape.
    """
    name = "embeddings.position_embeddings"
    if name not in state_dict:
        raise ValueError(f"there is no {name} among the tensors; give those of a whole backbone")
    positions, count, rule = state_dict[name], state_dict[name].shape[1] - 1, source or config
    grid = rule.grid_size
    if source is None and count != math.prod(grid):
        grid = (math.isqrt(count),) * 2
    if math.prod(grid) != count:
        raise ValueError(f"{count} position embeddings are not a square grid; start from a model of square images")
    if grid == config.grid_size:
        return dict(state_dict)
    patches = interpolate_positions(
        positions[:, 1:],
        grid,
        config.grid_size,
        antialias=rule.interpolate_antialias,
        offset=rule.interpolate_offset,
    )
    return {**state_dict, name: torch.cat((positions[:, :1], patches), dim=1)}
