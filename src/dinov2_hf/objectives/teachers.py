"""Frozen teachers of distillation. They compute in the compute dtype throughout, and no checkpoint has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ..backbones import Backbone, CropGroup, Features, Tokens
from .heads import DINOHead


class FrozenTeacher(nn.Module):
    """A backbone that is only evaluated, and its heads.

    Args:
        backbone: frozen.
        mean, std: what its images are normalised with, per channel.
        heads: on the backbone; may be empty.
    """

    def __init__(
        self, backbone: Backbone, mean: Sequence[float], std: Sequence[float], heads: dict[str, DINOHead] | None = None
    ) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads or {})

    def place(self, device: torch.device, dtype: torch.dtype, sharded: bool) -> None:
        """Moves the weights; shards every block and head where the students are sharded. Collective then."""
        self.to(device=device, dtype=dtype)
        if sharded:
            for module in (*self.backbone.blocks.values(), *self.heads.values()):
                fully_shard(module)
            fully_shard(self)

    def renormalize(self, crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Crops that were normalised with `mean` and `std` as this network wants them, untouched where they are so."""
        if (list(mean), list(std)) == (self.mean, self.std):
            return crops
        factors = tuple(ours / theirs for ours, theirs in zip(std, self.std, strict=True))
        offsets = tuple((o - t) / s for o, t, s in zip(mean, self.mean, self.std, strict=True))
        return crops * _per_channel(factors, crops.device) + _per_channel(offsets, crops.device)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class PrototypeTeacher(FrozenTeacher):
    """A teacher with heads: `dino_head` and, where the patch-level term has its own, `ibot_head`."""

    @classmethod
    def of(cls, weights: Any) -> PrototypeTeacher:
        """Builds the teacher of opened weights (`weights.Weights`).

        Raises:
            ValueError: they have no heads, or are damaged.
        """
        found = {name: state for name, state in weights.heads().items() if name in ("dino_head", "ibot_head")}
        if not found:
            raise ValueError(
                f"{weights.where} has no heads; give a run or an export that has, or use objective=distill_features"
            )
        if own := [name for name, state in found.items() if "last_layer2.weight_v" in state]:
            raise ValueError(
                f"the {own[0]} of {weights.where} has prototypes of its own for patches, as iBOT can have them; "
                "use objective=distill_features"
            )
        if bare := [name for name, state in found.items() if not any(part.startswith("last_layer") for part in state)]:
            raise ValueError(
                f"the {bare[0]} of {weights.where} has no prototypes, as that of objective=simdino; "
                "use objective=distill_features"
            )
        try:
            heads = {name: DINOHead.from_state(state) for name, state in sorted(found.items())}
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{weights.where} is damaged: {error}") from None
        mean, std = weights.normalization
        return cls(weights.build(attention="auto"), mean, std, heads)

    @torch.no_grad()
    def forward(self, crops: Tensor, wanted: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tokens:
        """Returns CLS `[2B, D]` and the wanted patches `[M, D]` of crops that are normalised with `mean` and `std`."""
        crops = self.renormalize(crops, mean, std)
        with torch.autocast(crops.device.type, enabled=False):
            (tokens,) = self.backbone.tokens([CropGroup(crops.to(self.dtype), wanted=wanted)])
        return tokens


class FeatureTeacher(FrozenTeacher):
    """Any backbone, with its own stride and normalisation."""

    @classmethod
    def of(cls, weights: Any) -> FeatureTeacher:
        """Builds the teacher of opened weights (`weights.Weights`)."""
        return cls(weights.build(attention="auto", stock=True), *weights.normalization)

    @torch.no_grad()
    def forward(self, crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Features:
        """Returns the features of crops that are normalised with `mean` and `std`, the map in float32.

        Crops whose side the stride does not divide are resized to the nearest side that it does.
        """
        stride = self.backbone.stride
        height, width = (max(round(side / stride), 1) * stride for side in crops.shape[-2:])
        if (height, width) != tuple(crops.shape[-2:]):
            crops = nn.functional.interpolate(crops, (height, width), mode="bicubic", antialias=True)
        crops = self.renormalize(crops, mean, std)
        with torch.autocast(crops.device.type, enabled=False):
            ((cls, patches),) = self.backbone.features(crops.to(self.dtype))
        return Features(cls, patches.float())


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as `[1, C, 1, 1]` on the device, kept there: a copy from the host waits for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
