"""Names of tensors in the original codes, by family, and whose tensors a file holds.

Original state dicts come in variants: transformer blocks chunked for FSDP (`blocks.0.3.…`), wrapped (see `wrappings`),
with or without registers, with MLP or SwiGLU, with or without a token for masked patches. All of them are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.dinov2.stock_names import published_names as dinov2_published_names
from ..backbones.vit.stock_names import published_name

_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_QKV = ("query", "key", "value")
MASK_TOKEN = "embeddings.mask_token"


@dataclass(frozen=True)
class Names:
    """Names of a family: original ones and those of the interchange format."""

    family: str
    title: str
    """What messages call the models."""
    top: Mapping[str, str]
    """Tensors outside of the blocks."""
    block: Mapping[str, str]
    """Modules of a block, without the fused query, key and value."""
    mask_shape: tuple[int, ...]
    """Of the token for masked patches in the interchange format, -1 for the width; the original one is `[1, D]`."""

    def renamed(self, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under original names, renamed to the interchange format.

        Raises:
            ValueError: a name that is not part of such a backbone.
        """
        converted: dict[str, Tensor] = {}
        for name, tensor in original.items():
            if name in self.top:
                converted[self.top[name]] = tensor
                continue
            # chunked blocks keep their global index behind the chunk's: blocks.<chunk>.<layer>.
            match = re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.(.+?)(\.weight|\.bias)?", name)
            if match is None:
                raise self.foreign(name)
            layer, part, suffix = match[1], match[2], match[3] or ""
            prefix = f"encoder.layer.{layer}."
            if part == "attn.qkv":
                for target, piece in zip(_QKV, tensor.chunk(3)):
                    converted[f"{prefix}attention.attention.{target}{suffix}"] = piece.clone()
            elif part in self.block:
                converted[f"{prefix}{self.block[part]}{suffix}"] = tensor
            else:
                raise ValueError(
                    f"tensor {name!r} does not belong to a {self.title} backbone (unknown block part {part!r})"
                )
        if (mask := converted.get(MASK_TOKEN)) is not None and mask.numel() == mask.shape[-1]:
            converted[MASK_TOKEN] = mask.reshape(self.mask_shape)
        return converted

    def original(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `renamed`, with unchunked blocks and fused query, key and value.

        Raises:
            ValueError: a name that is not part of such a backbone.
        """
        top = {target: source for source, target in self.top.items()}
        block = {target: source for source, target in self.block.items()}
        original: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name in top:
                original[top[name]] = tensor.reshape(1, -1) if name == MASK_TOKEN else tensor
                continue
            match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
            if match is None:
                raise self.foreign(name)
            layer, part, suffix = match[1], match[2], match[3] or ""
            if part == "attention.attention.query":
                pieces = [tensors[name.replace(".query", f".{target}")] for target in _QKV]
                original[f"blocks.{layer}.attn.qkv{suffix}"] = torch.cat(pieces)
            elif part in block:
                original[f"blocks.{layer}.{block[part]}{suffix}"] = tensor
            elif not part.startswith("attention.attention."):
                raise self.foreign(name)
        return original

    def foreign(self, name: str) -> ValueError:
        """The error about a tensor that is not part of such a backbone."""
        return ValueError(
            f"tensor {name!r} does not belong to a {self.title} backbone; "
            "give a file or state dict that has the tensors of one"
        )


DINOV2 = Names(
    "dinov2",
    "DINOv2",
    {**_TOP, "mask_token": MASK_TOKEN, "register_tokens": "embeddings.register_tokens"},
    {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    },
    (1, -1),
)
VIT = Names(
    "vit",
    "DINO or iBOT",
    {**_TOP, "masked_embed": MASK_TOKEN},
    {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    (1, 1, -1),
)
NAMES = {names.family: names for names in (DINOV2, VIT)}
"""By family."""

_OF_DINOV2 = re.compile(r"blocks\..+\.(ls[12]\.gamma|mlp\.w12\..+|mlp\.w3\..+)|(mask|register)_tokens?|reg_token")
_OF_VIT = re.compile(r"encoder\.layer\.\d+\.layernorm_before\..+")


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of published files, where they have those of a stock class in memory."""
    return {published_name(name): tensor for name, tensor in dinov2_published_names(tensors).items()}


def names_of(tensors: Iterable[str]) -> Names:
    """Whose tensors these are, by their names: those of the interchange format, of the original codes or of timm.

    Under original names a backbone is one of the family `vit` if it has blocks and a patch projection and nothing that
    only DINOv2 has: LayerScale, registers, SwiGLU, a `mask_token`. All other tensors are held for those of DINOv2.
    """
    names = set(tensors)
    if any(map(_OF_VIT.fullmatch, names)):
        return VIT
    whole = "patch_embed.proj.weight" in names and any(name.startswith("blocks.") for name in names)
    return VIT if whole and not any(map(_OF_DINOV2.fullmatch, names)) else DINOV2
