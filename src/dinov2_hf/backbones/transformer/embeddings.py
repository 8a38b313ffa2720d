"""From pixels to tokens: patches, mask token, CLS, position embeddings and registers.

Axes: `B` images, `C` channels, `N` patches, `R` registers, `T = 1 + R + N` tokens, `D` width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .configuration import TransformerConfig


class PatchEmbeddings(nn.Module):
    """Linear projection of non-overlapping patches: `[B, C, H, W]` to `[B, N, D]`, row by row."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch = config.patch_height_width
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        patches: Tensor = self.projection(pixel_values)
        return patches.flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """Tokens of a batch of images of one size, `[B, 1 + R + N, D]`: CLS, registers, patches.

    Args:
        mask_shape: of the mask token, as the stock class of the family has it; None: the model takes no masks.
    """

    def __init__(self, config: TransformerConfig, mask_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        rows, columns = config.grid_size
        width = config.hidden_size
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = None if mask_shape is None else nn.Parameter(torch.zeros(mask_shape))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.patch_embeddings = PatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:
        """Tokens `[B, T, D]` of `pixel_values` `[B, C, H, W]`; patches where `bool_masked_pos` `[B, N]` are masked.

        Raises:
            ValueError: another number of channels, a side that the patch does not divide, a mask of another shape or
                for a model without mask token.
        """
        batch, channels, height, width = pixel_values.shape
        if channels != self.config.num_channels:
            raise ValueError(
                f"pixel_values has {channels} channels, the model num_channels={self.config.num_channels}; "
                "convert the images or build the model with that many channels"
            )
        rows, columns = self.config.grid_of(height, width)
        patches = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("the model has no mask token; leave bool_masked_pos out, or build it with one")
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos has shape {list(bool_masked_pos.shape)}, the batch {list(patches.shape[:2])} "
                    "patches; give one flag for each patch, row by row"
                )
            patches = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)

        cls_position, patch_positions = self._positions(rows, columns)
        prefix = (self.cls_token + cls_position).expand(batch, -1, -1)
        if self.register_tokens is not None:  # registers carry no position
            prefix = torch.cat((prefix, self.register_tokens.expand(batch, -1, -1)), dim=1)
        patches = patches + patch_positions
        tokens: Tensor = self.dropout(torch.cat((prefix.to(patches.dtype), patches), dim=1))
        return tokens

    def _positions(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        positions = self.position_embeddings
        cls_position, patch_positions = positions[:, :1], positions[:, 1:]
        if (rows, columns) != self.config.grid_size:
            patch_positions = interpolate_positions(
                patch_positions,
                self.config.grid_size,
                (rows, columns),
                antialias=self.config.interpolate_antialias,
                offset=self.config.interpolate_offset,
            )
        return cls_position, patch_positions


def interpolate_positions(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], *, antialias: bool, offset: float
) -> Tensor:
    """Resamples position embeddings `[1, N, D]` of `grid` (rows, columns) to `new_grid`, bicubic, in float32.

    With `offset` other than 0 the scale factor `(new + offset) / old` is what the kernel samples by, as in the original
    code for checkpoints without registers; with 0 it is the sizes themselves.
    """
    dtype, width = positions.dtype, positions.shape[-1]
    images = positions.float().reshape(1, *grid, width).permute(0, 3, 1, 2)
    target: dict[str, Any]
    if offset:
        target = {"scale_factor": tuple((new + offset) / old for new, old in zip(new_grid, grid))}
    else:
        target = {"size": new_grid}
    images = nn.functional.interpolate(images, mode="bicubic", align_corners=False, antialias=antialias, **target)
    assert tuple(images.shape[-2:]) == tuple(new_grid), (images.shape, new_grid)
    return images.permute(0, 2, 3, 1).flatten(1, 2).to(dtype)
