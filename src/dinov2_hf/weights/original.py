"""Files under the tensor names of the original codes: of DINOv2, and of DINO and iBOT."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..backbones import Dinov2Config, PretrainedBackbone, ViTConfig
from ..backbones.dinov2.describe import preset_of
from ..backbones.vit.describe import preset_of as vit_preset_of
from .architecture import check_expressible, mlp_ratio
from .base import Format, Place, Weights, class_of
from .names import MASK_TOKEN, NAMES, VIT, names_of
from .notes import Notes
from .positions import rule_remarks
from .tensors import NOTES, TensorFile, left_out, refuse_integers

Converted = tuple[dict[str, Tensor], Callable[..., PreTrainedConfig]]
"""Tensors of a backbone under the names of the interchange format, and what reads the config off their shapes."""

_HEAD_WIDTH = 64
"""Channels of an attention head in all published models."""
_MASKED_EMBED = "masked_embed"
"""iBOT's token for masked patches, which DINO's code does not have."""


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict under original names, renamed to the interchange format (fused qkv split).

    Raises:
        ValueError: a name that is not part of a backbone of these codes, or no single backbone.
    """
    found = TensorFile.of(state_dict)
    names = names_of(found.backbone)
    for name in [*found.left_out, *found.heads]:
        raise names.foreign(name)
    return names.renamed(found.backbone)


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_original`, with unchunked blocks and fused qkv.

    Raises:
        ValueError: a name that is not part of a backbone of these codes.
    """
    return names_of(state_dict).original(state_dict)


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


def config_from_original(state_dict: Mapping[str, Tensor], **overrides: Any) -> PreTrainedConfig:
    """The architecture that an original state dict was saved from, read off its shapes.

    The number of heads leaves no trace in the shapes: it is `guess_num_attention_heads`, unless `num_attention_heads`
    says otherwise. Without registers the position embeddings are interpolated as the original
    code does it (scale factor with offset 0.1), with registers to a size with antialias.

    Returns:
        A config of the family that the tensors belong to: `Dinov2Config` or `ViTConfig`.
    """
    converted = from_original(state_dict)
    projection = converted["embeddings.patch_embeddings.projection.weight"]
    positions = converted["embeddings.position_embeddings"]
    side = round((positions.shape[1] - 1) ** 0.5)
    width, channels, *patch = projection.shape
    settings = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in converted if name.startswith("encoder.")),
        "num_attention_heads": guess_num_attention_heads(width),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "image_size": side * patch[0] if patch[0] == patch[1] else [side * patch[0], side * patch[1]],
        "num_channels": channels,
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in converted,
    }
    if names_of(converted) is VIT:
        return ViTConfig(**{**settings, **_shapes_of_vit(converted), **overrides})
    return Dinov2Config(**{**settings, **_shapes_of_dinov2(converted, width), **overrides})


def _shapes_of_dinov2(converted: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    registers = converted.get("embeddings.register_tokens")
    swiglu = "encoder.layer.0.mlp.weights_in.weight" in converted
    settings: dict[str, Any] = {
        "use_swiglu_ffn": swiglu,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "interpolate_offset": 0.1 if registers is None else 0.0,
    }
    if not swiglu:
        settings["mlp_ratio"] = converted["encoder.layer.0.mlp.fc1.weight"].shape[0] // width
    return settings


def _shapes_of_vit(converted: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "intermediate_size": converted["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "use_mask_token": MASK_TOKEN in converted,
        "layer_norm_eps": 1e-6,
        "interpolate_offset": 0.1,
    }


def model_from_original(state_dict: Mapping[str, Tensor] | str | PathLike[str], **overrides: Any) -> Any:
    """A `Dinov2Model` or `ViTModel` with the weights of an original state dict or `.pth` file.

    Args:
        state_dict: tensors under original names, or the path of a file with them (loaded with `weights_only=True`).
        overrides: arguments of the config that the shapes cannot tell, such as `num_attention_heads`.
    """
    if isinstance(state_dict, Mapping):
        tensors = TensorFile.of(state_dict).backbone
    else:
        tensors = TensorFile.read(Path(state_dict), str(state_dict)).backbone
    config = config_from_original(tensors, **overrides)
    model = class_of(config)(config)
    model.load_state_dict(from_original(tensors))
    return model.eval()


def write_original(
    path: str | PathLike[str], model: PretrainedBackbone, preprocessor: dict[str, Any] | None = None
) -> None:
    """Writes a `.pth` file of plain tensors that `load_state_dict` of the original code takes as it is.

    iBOT's `masked_embed` is among them if it was trained; one of zeros travels in the notes, as DINO's code has none.

    Raises:
        ValueError: an architecture that the original code has not.
    """
    config = model.config
    check_expressible(config, "the original code", square=True, any_epsilon=config.model_type == "vit")
    state = OrderedDict((name, tensor.cpu()) for name, tensor in to_original(model.state_dict()).items())
    kept = {}
    if _MASKED_EMBED in state and not state[_MASKED_EMBED].any():
        del state[_MASKED_EMBED]
        kept = {MASK_TOKEN: model.state_dict()[MASK_TOKEN]}
    setattr(state, NOTES, Notes(config, preprocessor, kept).pack())
    torch.save(state, path)


def original_usage(path: str, config: Any) -> str:
    """Python that loads such a file into the original code."""
    model = _usage_of_vit(path, config) if config.model_type == "vit" else _usage_of_dinov2(config)
    return f'model = {model}\nmodel.load_state_dict(torch.load("{path}", weights_only=True))'


def _usage_of_dinov2(config: Dinov2Config) -> str:
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
        return f'torch.hub.load("facebookresearch/dinov2", "{name}", pretrained=False{given})'
    # torch.hub has only the published sizes
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
    return f"dinov2.models.vision_transformer.DinoVisionTransformer({given})"


def _usage_of_vit(path: str, config: ViTConfig) -> str:
    """Of DINO's code; of iBOT's where the file has a token for masked patches."""
    patch, size = config.patch_height_width[0], config.grid_size[0] * config.patch_height_width[0]
    masked = Path(path).is_file() and _MASKED_EMBED in torch.load(path, weights_only=True, mmap=True)
    letter = {"small": "s", "base": "b"}.get(vit_preset_of(config) or "")
    if letter and patch in (8, 16) and config.layer_norm_eps == 1e-6 and config.qkv_bias and not masked:
        given = f", img_size=[{size}]" * (size != 224)
        given += f", in_chans={config.num_channels}" * (config.num_channels != 3)
        return f'torch.hub.load("facebookresearch/dino:main", "dino_vit{letter}{patch}", pretrained=False{given})'
    arguments = {
        "img_size": [size],
        "patch_size": patch,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        **({"masked_im_modeling": True} if masked else {}),
    }
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    norm = f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={config.layer_norm_eps!r})"
    return f"{'models.' * masked}vision_transformer.VisionTransformer({given}, {norm})"


def original_limits(config: PreTrainedConfig) -> list[str]:
    """What the original code does otherwise than the model: that of DINO has one rule, that of DINOv2 arguments."""
    if config.model_type != "vit":
        return []
    return rule_remarks(config, "the original code", antialias=False, offset=0.1)


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
    notes, names = Notes.unpack(file.metadata, where), names_of(place.file.backbone)
    if file.heads and not file.backbone:
        raise ValueError(f"{where} holds projection heads only; give the folder, which has the backbone beside them")
    if heads is not None:
        settings["num_attention_heads"] = heads
    try:
        backbone, config_of = convert(notes)
        config = notes.config or config_of(**settings)
    except KeyError as error:
        raise ValueError(f"{where} lacks {error} and is not a whole {names.title} backbone; fetch it again") from None
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
        make=class_of(config),
        remarks=remarks + left_out(file.left_out),
    )


def read_original(place: Place) -> Weights:
    """Reads a file under the original names, or refuses a file of something else."""
    state = place.file.backbone

    def convert(notes: Notes) -> Converted:
        return notes.tensors | from_original(state), lambda **settings: config_from_original(state, **settings)

    kind = "file under the original names" + ", with heads" * bool(place.file.heads)
    return weights_of_file(place, kind, convert, [])


FORMAT = Format(
    holds=lambda place: place.is_file,  # what no other format knows is refused by its names here
    read=read_original,
    write=write_original,
    suffix=".pth",
    families=tuple(NAMES),
    usage=original_usage,
    limits=original_limits,
)
