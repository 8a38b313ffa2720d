"""What travels from the data to the training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class SSLBatch:
    """Crops of `B` images with their masks.

    Crops are crop-major: view 1 of every image, then view 2, and so on. They leave the data workers as uint8 with the
    colour parameters beside them; the photometric augmentation on the device turns them into normalised floats.
    """

    global_crops: Tensor
    """`[2B, C, H, W]`."""
    local_crops: Tensor
    """`[n B, C, h, w]`; n may be 0."""
    masks: Tensor
    """`[2B, N]` bool: patches of the global crops that the student does not see."""
    mask_indices: Tensor
    """`[M]`: positions of the masked patches in the flattened `[2B N]` patches."""
    mask_weights: Tensor
    """`[M]`: one over the number of masked patches in the same crop."""
    global_colors: Tensor | None = None
    """`[2B, P]` colour parameters, see `data.photometric`; they stay on the host; None once applied."""
    local_colors: Tensor | None = None
    """`[n B, P]`, likewise."""
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, name and reason (`data.Broken`) of everything unreadable that was met while the batch was read."""
    shallow: list[str] = field(default_factory=list)
    """Names of 16-bit images that use 12 bits or fewer."""

    @staticmethod
    def flatten_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
        """`mask_indices` and `mask_weights` of `masks` `[2B, N]`."""
        indices = masks.flatten().nonzero().flatten()
        weights = (1 / masks.sum(dim=1).clamp(min=1)).repeat_interleave(masks.shape[1])
        return indices, weights[indices]

    @property
    def all_patches(self) -> Tensor:
        """`[2B N]`: positions of all patches of the global crops in the flattened patches."""
        return torch.arange(self.masks.numel(), device=self.masks.device)

    def patches_of(self, stride: int) -> tuple[Tensor, Tensor]:
        """All patches that a backbone of this stride in pixels makes of the global crops.

        Returns:
            Their positions in the flattened patches, and one over the number of patches in the same crop, `[2B N]`.
        """
        crops, device = len(self.global_crops), self.global_crops.device
        height, width = self.global_crops.shape[-2:]
        patches = (height // stride) * (width // stride)
        weights = torch.full((crops * patches,), 1 / patches, device=device)
        return torch.arange(crops * patches, device=device), weights

    @property
    def num_images(self) -> int:
        """B."""
        return self.global_crops.shape[0] // 2

    def to(self, device: torch.device, non_blocking: bool = False) -> SSLBatch:
        """The batch with every tensor but the colour parameters on `device`."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, global_colors=self.global_colors, local_colors=self.local_colors)

    def pin_memory(self) -> SSLBatch:
        """The batch in page-locked memory; called by the data loader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> SSLBatch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        mapped: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **mapped)
