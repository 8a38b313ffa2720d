"""Frozen teachers of distillation. They are in the compute dtype throughout, and never in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ..backbones import Backbone, Dinov2Model
from ..data.batch import SSLBatch
from .heads import DINOHead
from .prototypes import packed_positions

Targets = TypeVar("Targets")


class FrozenTeacher(nn.Module):
    """A network that is only asked.

    Args:
        mean, std: what its images are normalised with, per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)

    def place(self, device: torch.device, dtype: torch.dtype, sharded: bool) -> None:
        """Moves the weights; shards every layer and head where the students are sharded. Collective then."""
        self.to(device=device, dtype=dtype)
        if sharded:
            for unit in self.shard_units:
                fully_shard(unit)
            fully_shard(self)

    @property
    def shard_units(self) -> list[nn.Module]:
        """The parts that are gathered one at a time where the network is sharded."""
        raise NotImplementedError

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
    """A backbone of ours with its heads: `dino_head` and, where iBOT has its own, `ibot_head`.

    Args:
        mean, std: what its images are normalised with, per channel.
    """

    def __init__(
        self, backbone: Dinov2Model, heads: dict[str, DINOHead], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(mean, std)
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def shard_units(self) -> list[nn.Module]:
        return [*self.backbone.blocks.values(), *self.heads.values()]

    @torch.no_grad()
    def forward(
        self,
        batch: SSLBatch,
        targets_of: Callable[[nn.ModuleDict, Tensor, Tensor], Targets],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> tuple[Tensor, Targets]:
        """CLS of the global crops `[2B, D]`, and what `targets_of` makes of heads, CLS and compared patches.

        The crops are normalised with `mean` and `std`.
        """
        positions, _ = packed_positions(batch, self.backbone.config)
        crops = self.renormalize(batch.global_crops, mean, std)
        with torch.autocast(crops.device.type, enabled=False):
            tokens = self.backbone.forward_at(positions, [crops.to(self.dtype)])
            cls, patches = tokens.split([len(batch.global_crops), len(batch.mask_indices)])
            return cls, targets_of(self.heads, cls, patches)


class FeatureTeacher(FrozenTeacher):
    """Any backbone, with its own stride and normalisation.

    Args:
        mean, std: what its images are normalised with.
    """

    def __init__(self, network: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.network = network

    @property
    def width(self) -> int:
        """Channels of its features."""
        return self.network.width

    @property
    def shard_units(self) -> list[nn.Module]:
        return list(self.network.blocks.values())

    @torch.no_grad()
    def forward(self, crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """CLS `[V, D]` and the map of patch features `[V, D, h, w]` of crops normalised with `mean` and `std`.

        Crops whose side the stride does not divide are resized to the nearest that it does.
        """
        stride = self.network.stride
        height, width = (max(round(side / stride), 1) * stride for side in crops.shape[-2:])
        if (height, width) != tuple(crops.shape[-2:]):
            crops = nn.functional.interpolate(crops, (height, width), mode="bicubic", antialias=True)
        crops = self.renormalize(crops, mean, std)
        with torch.autocast(crops.device.type, enabled=False):
            ((cls, patches),) = self.network.features(crops)
        return cls, patches.float()


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as `[1, C, 1, 1]` on the device, kept there: a copy from the host waits for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
