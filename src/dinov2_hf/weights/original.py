"""Between the tensor names of the original DINOv2 code and those of the interchange format.

Original state dicts come in variants: transformer blocks chunked for FSDP (`blocks.0.3.…`), wrapped (see `wrappings`),
with or without registers, with MLP or SwiGLU. All of them are read.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.dinov2.configuration import Dinov2Config
from ..backbones.dinov2.describe import preset_of
from ..backbones.dinov2.modeling import Dinov2Model
from .architecture import check_expressible
from .base import Format, Place, Weights
from .notes import Notes
from .tensors import NOTES, TensorFile, left_out, refuse_integers

Converted = tuple[dict[str, Tensor], Callable[..., Dinov2Config]]
"""Tensors of a backbone under the names of the interchange format, and what reads the config off their shapes."""

_HEAD_WIDTH = 64
"""Channels of an attention head in all published models."""

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


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict under original names, renamed to the interchange format (fused qkv split).

    Raises:
        ValueError: a name that is not part of a DINOv2 backbone, or no single backbone.
    """
    converted: dict[str, Tensor] = {}
    found = TensorFile.of(state_dict)
    for name in [*found.left_out, *found.heads]:
        raise _foreign(name)
    for name, tensor in found.backbone.items():
        if name in _TOP:
            converted[_TOP[name]] = tensor
            continue
        # chunked blocks keep their global index behind the chunk's: blocks.<chunk>.<layer>.
        match = re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if match is None:
            raise _foreign(name)
        layer, part, suffix = match[1], match[2], match[3] or ""
        prefix = f"encoder.layer.{layer}."
        if part == "attn.qkv":
            for target, piece in zip(_QKV, tensor.chunk(3)):
                converted[f"{prefix}attention.attention.{target}{suffix}"] = piece.clone()
        elif part in _BLOCK:
            converted[f"{prefix}{_BLOCK[part]}{suffix}"] = tensor
        else:
            raise ValueError(f"tensor {name!r} does not belong to a DINOv2 backbone (unknown block part {part!r})")
    return converted


def _foreign(name: str) -> ValueError:
    return ValueError(
        f"tensor {name!r} does not belong to a DINOv2 backbone; give a file or state dict that has the tensors of one"
    )


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


def guess_num_attention_heads(width: int) -> int:
    """The number of attention heads where nothing says it: each of 64 channels, or a single one where 64 do not fit."""
    return 1 if width % _HEAD_WIDTH else width // _HEAD_WIDTH


def require_num_attention_heads(weights: Weights) -> None:
    """Refuses weights whose number of attention heads nothing says and nothing suggests.

    Raises:
        ValueError: saying how to give it.
    """
    if weights.knows_num_attention_heads:
        return
    if (width := weights.config.hidden_size) % _HEAD_WIDTH:
        raise ValueError(
            f"{weights.where} does not tell its number of attention heads, and its width {width} is not a multiple of "
            f"the usual {_HEAD_WIDTH} channels; give --num-attention-heads"
        )


def config_from_original(state_dict: Mapping[str, Tensor], **overrides: Any) -> Dinov2Config:
    """The architecture that an original state dict was saved from, read off its shapes.

    The number of heads leaves no trace in the shapes: it is `guess_num_attention_heads`, unless `num_attention_heads`
    says otherwise. Without registers the position embeddings are interpolated as the original
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
        "num_attention_heads": guess_num_attention_heads(width),
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


def model_from_original(state_dict: Mapping[str, Tensor] | str | PathLike[str], **overrides: Any) -> Dinov2Model:
    """A `Dinov2Model` with the weights of an original state dict or `.pth` file.

    Args:
        state_dict: tensors under original names, or the path of a file with them (loaded with `weights_only=True`).
        overrides: arguments of `Dinov2Config` that the shapes cannot tell, such as `num_attention_heads`.
    """
    if isinstance(state_dict, Mapping):
        tensors = state_dict
    else:
        tensors = TensorFile.read(Path(state_dict), str(state_dict)).backbone
    model = Dinov2Model(config_from_original(tensors, **overrides))
    model.load_state_dict(from_original(tensors))
    return model.eval()


def write_original(path: str | PathLike[str], model: Dinov2Model, preprocessor: dict[str, Any] | None = None) -> None:
    """Writes a `.pth` file of plain tensors that `load_state_dict` of the original code takes as it is.

    Raises:
        ValueError: an architecture that the original code has not.
    """
    check_expressible(model.config, "the original code", square=True)
    state = OrderedDict((name, tensor.cpu()) for name, tensor in to_original(model.state_dict()).items())
    setattr(state, NOTES, Notes(model.config, preprocessor).pack())
    torch.save(state, path)


def original_usage(path: str, config: Dinov2Config) -> str:
    """Python that loads such a file into the original code."""
    registers = config.num_register_tokens
    settings = {
        "img_size": (config.grid_size[0] * config.patch_height_width[0], 518),
        "patch_size": (config.patch_height_width[0], 14),
        "in_chans": (config.num_channels, 3),
        "qkv_bias": (config.qkv_bias, True),
        "num_register_tokens": (registers, 4 if registers else 0),
        "interpolate_antialias": (config.interpolate_antialias, registers > 0),
        "interpolate_offset": (config.interpolate_offset, 0.0 if registers else 0.1),
    }
    letter = {"small": "s", "base": "b", "large": "l", "giant": "g"}.get(preset_of(config) or "")
    if letter:
        name = f"dinov2_vit{letter}14{'_reg' if registers else ''}"
        given = "".join(f", {key}={value!r}" for key, (value, default) in settings.items() if value != default)
        model = f'torch.hub.load("facebookresearch/dinov2", "{name}", pretrained=False{given})'
    else:  # torch.hub has the published sizes alone
        arguments = {key: value for key, (value, _) in settings.items()} | {
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.mlp_ratio,
            "ffn_layer": "swiglufused" if config.use_swiglu_ffn else "mlp",
            "init_values": 1.0,
            "block_chunks": 0,
        }
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        model = f"dinov2.models.vision_transformer.DinoVisionTransformer({given})"
    return f'model = {model}\nmodel.load_state_dict(torch.load("{path}", weights_only=True))'


def weights_of_file(
    place: Place,
    kind: str,
    convert: Callable[[Notes], Converted],
    remarks: list[str],
    **settings: Any,
) -> Weights:
    """Weights in one file without a `config.json`: its notes say the config, where we wrote it, else its shapes.

    Args:
        kind: what the file is, in words.
        convert: gives the tensors of the backbone under the names of the interchange format, and what reads the config
            off their shapes; settings that the shapes do not show are passed to it.
        remarks: what was not there, or not taken.
        settings: of the config, where the notes do not say it.

    Raises:
        ValueError: notes that are damaged, tensors that are missing or do not belong to a backbone.
    """
    file, where, heads = place.file, place.where, place.num_attention_heads
    notes = Notes.unpack(file.metadata, where)
    if file.heads and not file.backbone:
        raise ValueError(f"{where} holds projection heads only; give the folder, which has the backbone beside them")
    if heads is not None:
        settings["num_attention_heads"] = heads
    try:
        backbone, config_of = convert(notes)
        config = notes.config or config_of(**settings)
    except KeyError as error:
        raise ValueError(f"{where} lacks {error} and is not a whole DINOv2 backbone; fetch it again") from None
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}") from None
    refuse_integers(backbone, where)
    tensors = {f"backbone.{name}": value for name, value in backbone.items()} | file.heads
    return Weights(
        where,
        "training state of the original code" if file.training_state else kind,
        config,
        lambda _: tensors,
        place.network,
        has_student=file.training_state,
        knows_num_attention_heads=notes.config is not None or heads is not None,
        preprocessor=notes.preprocessor,
        remarks=remarks + left_out(file.left_out),
    )


def read_original(place: Place) -> Weights:
    """Reads a file under the original names, or refuses a file of something else."""

    def convert(notes: Notes) -> Converted:
        return from_original(place.file.backbone), lambda **settings: config_from_original(
            place.file.backbone, **settings
        )

    return weights_of_file(
        place, "file under the original names" + ", with heads" * bool(place.file.heads), convert, []
    )


FORMAT = Format(
    holds=lambda place: place.is_file,  # what no other format knows is refused by its names here
    read=read_original,
    write=write_original,
    suffix=".pth",
    families=("dinov2",),
    usage=original_usage,
)
