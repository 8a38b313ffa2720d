"""Between timm's names and those of the interchange format: `vit_*_patch14_dinov2`, `…_reg4_dinov2`, `vit_*_224.dino`.

timm follows the original names, with these exceptions: SwiGLU is `mlp.fc1` and `mlp.fc2` like the MLP, registers are
`reg_token`, there is no mask token, and with registers the position of CLS is part of `cls_token` (`no_embed_class`).
Position embeddings are interpolated to a size, always with antialias. DINO's own files have timm's very names: those in
`.pth` files are taken for DINO's, those in safetensors files for timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from ..backbones import Dinov2Config, PretrainedBackbone, ViTConfig
from ..backbones.dinov2.describe import preset_of
from ..backbones.vit.describe import preset_of as vit_preset_of
from ..config import PRESETS, VIT_PRESETS
from .architecture import check_expressible, mlp_ratio
from .base import Format, Place, Weights
from .names import MASK_TOKEN, NAMES, VIT, names_of
from .notes import Notes
from .original import Converted, config_from_original, from_original, to_original, weights_of_file
from .positions import rule_remarks
from .tensors import TensorFile, left_out, without_classifier

_CLS, _CLS_POSITION = "embeddings.cls_token", "cls_position"


def to_timm(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A backbone's state dict under timm's names, and the tensors that cannot be had back from it."""
    kept = {MASK_TOKEN: state_dict[MASK_TOKEN]} if MASK_TOKEN in state_dict else {}
    timm = {}
    for name, tensor in to_original(state_dict).items():
        name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        timm["reg_token" if name == "register_tokens" else name] = tensor
    for mask in ("mask_token", "masked_embed"):
        timm.pop(mask, None)
    if "reg_token" in timm:
        kept |= {_CLS: timm["cls_token"], _CLS_POSITION: timm["pos_embed"][:, :1]}
        timm["cls_token"] = timm["cls_token"] + timm["pos_embed"][:, :1]
        timm["pos_embed"] = timm["pos_embed"][:, 1:]
    return {name: tensor.contiguous() for name, tensor in timm.items()}, kept


def from_timm(state_dict: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A backbone's state dict under timm's names, renamed to the interchange format.

    Args:
        state_dict: of a timm model, without its classifier.
        kept: the second result of `to_timm`. Without it, or where the weights have changed since, the mask token of
            DINOv2 is zero, the family `vit` has none, and CLS bears its position itself: features are the same.

    Raises:
        ValueError: a name that is not part of a backbone.
    """
    kept = kept or {}
    state = _to_original_names(state_dict)
    if "register_tokens" in state:
        cls, position = kept.get(_CLS), kept.get(_CLS_POSITION)
        if cls is None or position is None or not torch.equal(cls + position, state["cls_token"]):
            cls, position = state["cls_token"], torch.zeros_like(state["cls_token"])
        state["cls_token"], state["pos_embed"] = cls, torch.cat((position, state["pos_embed"]), dim=1)
    backbone = from_original(state)
    if names_of(backbone) is not VIT:
        backbone[MASK_TOKEN] = torch.zeros_like(state["cls_token"][0])
    return backbone | {name: tensor for name, tensor in kept.items() if name == MASK_TOKEN}


def config_from_timm(state_dict: Mapping[str, Tensor], **overrides: Any) -> PreTrainedConfig:
    """The architecture that a timm state dict was saved from, read off its shapes as in `config_from_original`."""
    original = _to_original_names(state_dict)
    if "register_tokens" in original:  # the place of CLS
        original["pos_embed"] = torch.nn.functional.pad(original["pos_embed"], (0, 0, 1, 0))
    rule = {"interpolate_antialias": True, "interpolate_offset": 0.0}
    return config_from_original(original, **{**rule, **overrides})


def write_timm(
    path: str | PathLike[str], model: PretrainedBackbone, preprocessor: dict[str, Any] | None = None
) -> None:
    """Writes a safetensors file that `timm.create_model(…, checkpoint_path=path)` loads.

    Raises:
        ValueError: an architecture that timm has not.
    """
    check_expressible(model.config, "timm's model", any_epsilon=model.config.model_type == "vit")
    state, kept = to_timm({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    save_file(state, path, metadata={"format": "pt", **Notes(model.config, preprocessor, kept).pack()})


def timm_usage(path: str, config: Any) -> str:
    """Python that loads such a file into timm."""
    size = [rows * patch for rows, patch in zip(config.grid_size, config.patch_height_width)]
    name, settings = _model_of_vit(config) if config.model_type == "vit" else _model_of_dinov2(config)
    settings |= {
        "img_size": (size[0] if size[0] == size[1] else tuple(size), settings["img_size"][1]),
        "in_chans": (config.num_channels, 3),
        "qkv_bias": (config.qkv_bias, True),
    }
    given = "".join(f", {key}={value!r}" for key, (value, default) in settings.items() if value != default)
    if config.layer_norm_eps != 1e-6:
        given += f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={config.layer_norm_eps!r})"
    return f'model = timm.create_model("{name}"{given}, dynamic_img_size=True, checkpoint_path="{path}")'


def _model_of_dinov2(config: Dinov2Config) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The nearest model of timm, and its arguments with their defaults."""
    registers, swiglu, width = config.num_register_tokens, config.use_swiglu_ffn, config.hidden_size
    preset = preset_of(config)
    if preset in (None, "tiny"):
        preset = "giant" if swiglu else "small"
    base = Dinov2Config.preset(preset)
    settings: dict[str, tuple[Any, Any]] = {
        "img_size": (None, 518),
        "patch_size": (config.patch_size, 14),
        "in_chans": (None, None),
        "embed_dim": (width, base.hidden_size),
        "depth": (config.num_hidden_layers, base.num_hidden_layers),
        "num_heads": (config.num_attention_heads, base.num_attention_heads),
        "qkv_bias": (None, None),
        "reg_tokens": (registers, 4 if registers else 0),
    }
    if not swiglu:
        settings["mlp_ratio"] = (config.mlp_ratio, 4)
    elif width != PRESETS["giant"]["hidden_size"] or config.mlp_ratio != 4:
        hidden = (int(int(width * config.mlp_ratio) * 2 / 3) + 7) // 8 * 8
        settings["mlp_ratio"] = (round((2 * hidden + 0.5) / width, 5), None)  # timm rounds down
    return f"vit_{preset}_patch14{'_reg4' if registers else ''}_dinov2", settings


def _model_of_vit(config: ViTConfig) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The nearest model of timm, and its arguments with their defaults."""
    preset = "base" if vit_preset_of(config) == "base" else "small"
    patch = 8 if config.patch_size == 8 else 16
    base = VIT_PRESETS[preset]
    settings: dict[str, tuple[Any, Any]] = {
        "img_size": (None, 224),
        "patch_size": (config.patch_size, patch),
        "in_chans": (None, None),
        "embed_dim": (config.hidden_size, base["hidden_size"]),
        "depth": (config.num_hidden_layers, base["num_hidden_layers"]),
        "num_heads": (config.num_attention_heads, base["num_attention_heads"]),
        "qkv_bias": (None, None),
        "mlp_ratio": (mlp_ratio(config), 4),
    }
    return f"vit_{preset}_patch{patch}_224.dino", settings


def _to_original_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = TensorFile.of(state_dict).backbone
    original = {}
    for name, tensor in state.items():
        block, _, part = name.partition(".mlp.")
        if part and _is_swiglu(state, block):
            name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        original["register_tokens" if name == "reg_token" else name] = tensor
    return original


def _is_swiglu(state: Mapping[str, Tensor], block: str) -> bool:
    """Gate and value come out of one layer, so that it has twice the width that the next one takes."""
    into, out = state.get(f"{block}.mlp.fc1.weight"), state.get(f"{block}.mlp.fc2.weight")
    return into is not None and out is not None and into.shape[0] == 2 * out.shape[1]


def holds_timm(place: Place) -> bool:
    """Whether a file has the names of timm's models and not those of the original codes.

    DINO's files have the same names: a file is timm's if it is one of safetensors or has a classifier.
    """
    if not place.is_file:
        return False
    plain = set(place.file.tensors)
    if not {"patch_embed.proj.weight", "cls_token"} <= plain or plain & {"mask_token", "register_tokens"}:
        return False
    return names_of(plain) is not VIT or place.path.endswith(".safetensors") or "head.weight" in plain


def read_timm(place: Place) -> Weights:
    """Reads a file under timm's names."""
    state, classifier = without_classifier(place.file.backbone, "head.")
    remarks = left_out(classifier)

    def convert(notes: Notes) -> Converted:
        if MASK_TOKEN not in notes.tensors and names_of(state) is not VIT:
            remarks.append("the mask token is zero: timm's models have none")
        return from_timm(state, notes.tensors), lambda **settings: config_from_timm(state, **settings)

    return weights_of_file(place, "file under timm's names", convert, remarks)


FORMAT = Format(
    holds=holds_timm,
    read=read_timm,
    write=write_timm,
    suffix=".safetensors",
    families=tuple(NAMES),
    usage=timm_usage,
    limits=lambda config: rule_remarks(config, "timm", antialias=True),
)
