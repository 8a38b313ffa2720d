"""Frozen teachers of distillation. They are in the compute dtype throughout, and never in a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from ..models import DINOHead, Dinov2Layer, Dinov2Model
from .batch import SSLBatch
from .prototypes import packed_positions

Targets = TypeVar("Targets")


class FrozenTeacher(nn.Module):
    """A network that is only asked."""

    _shard_units: tuple[str, ...]

    def place(self, device: torch.device, dtype: torch.dtype, sharded: bool) -> None:
        """Moves the weights; shards every layer and head where the students are sharded. Collective then."""
        self.to(device=device, dtype=dtype)
        if sharded:
            for module in list(self.modules()):
                if type(module).__name__ in self._shard_units:
                    fully_shard(module)
            fully_shard(self)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class PrototypeTeacher(FrozenTeacher):
    """A backbone of ours with its heads: `dino_head` and, where iBOT has its own, `ibot_head`."""

    _shard_units = (Dinov2Layer.__name__, DINOHead.__name__)

    def __init__(self, backbone: Dinov2Model, heads: dict[str, DINOHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @torch.no_grad()
    def forward(
        self, batch: SSLBatch, targets_of: Callable[[nn.ModuleDict, Tensor, Tensor], Targets]
    ) -> tuple[Tensor, Targets]:
        """CLS of the global crops `[2B, D]`, and what `targets_of` makes of heads, CLS and compared patches."""
        positions, _ = packed_positions(batch, self.backbone.config)
        with torch.autocast(batch.global_crops.device.type, enabled=False):
            tokens = self.backbone.forward_at(positions, [batch.global_crops.to(self.dtype)])
            cls, patches = tokens.split([len(batch.global_crops), len(batch.mask_indices)])
            return cls, targets_of(self.heads, cls, patches)


class FeatureTeacher(FrozenTeacher):
    """Any vision transformer of transformers, with its own patch size and normalisation.

    Args:
        model: with tokens of patches at the end of `last_hidden_state`, row by row (ViT, DINO, DINOv2, DINOv3, CLIP,
            SigLIP, …); of models of images and text the part for images.
        mean, std: what its images are normalised with.

    Raises:
        ValueError: no patch size in its config.
    """

    def __init__(self, model: PreTrainedModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        config = getattr(self.model, "config", model.config)
        config = getattr(config, "vision_config", config)
        patch = getattr(config, "patch_size", None)
        if patch is None:
            raise ValueError(f"{type(model).__name__} has no patches; take a vision transformer as teacher")
        self.patch_size = patch if isinstance(patch, int) else patch[0]
        self.hidden_size: int = config.hidden_size
        self.mean, self.std = list(mean), list(std)
        self._shard_units = tuple(getattr(model, "_no_split_modules", None) or ())
        accepted = inspect.signature(self.model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}

    @torch.no_grad()
    def forward(self, crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """CLS `[V, D]` and the map of patch features `[V, D, h, w]` of crops normalised with `mean` and `std`.

        Crops whose side the patch does not divide are resized to the nearest that it does. Where there is no CLS token,
        the mean of the patches takes its place.
        """
        height, width = (max(round(side / self.patch_size), 1) * self.patch_size for side in crops.shape[-2:])
        if (height, width) != tuple(crops.shape[-2:]):
            crops = nn.functional.interpolate(crops, (height, width), mode="bicubic", antialias=True)
        scale = crops.new_tensor([ours / theirs for ours, theirs in zip(std, self.std, strict=True)])
        shift = crops.new_tensor([(o - t) / s for o, t, s in zip(mean, self.mean, self.std, strict=True)])
        crops = crops * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        with torch.autocast(crops.device.type, enabled=False):
            tokens = self.model(pixel_values=crops.to(self.dtype), **self._options).last_hidden_state
        rows, columns = height // self.patch_size, width // self.patch_size
        patches = tokens[:, tokens.shape[1] - rows * columns :]
        cls = tokens[:, 0] if tokens.shape[1] > rows * columns else patches.mean(dim=1)
        return cls, patches.transpose(1, 2).unflatten(2, (rows, columns)).float()
