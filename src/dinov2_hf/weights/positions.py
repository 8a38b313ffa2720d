"""Position embeddings on another grid: once, or inside a graph whose grid is not known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..backbones.transformer.embeddings import interpolate_positions


def resize_position_embeddings(
    state_dict: Mapping[str, Tensor], config: PreTrainedConfig, source: PreTrainedConfig | None = None
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


def rule_remarks(config: PreTrainedConfig, reader: str, antialias: bool, offset: float = 0.0) -> list[str]:
    """What to say where a reader interpolates position embeddings by another rule than the model."""
    if (config.interpolate_antialias, config.interpolate_offset) == (antialias, offset):
        return []
    rows, columns = (count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    return [
        f"{reader} interpolates position embeddings by another rule than this model: its features are the same at "
        f"{rows} x {columns} pixels only; --image-size chooses another size"
    ]


def bicubic_matrix(new: int, old: int, scale: Tensor, antialias: bool) -> Tensor:
    """Bicubic resampling of `old` samples to `new` as a matrix `[new, old]`, as `interpolate` does it along one side.

    Made of element-wise operations alone, so that every exporter and every runtime has them and `new` may be symbolic.

    Args:
        new, old: numbers of samples.
        scale: scalar, old samples per new one: `old / new`, or what the rule with an offset gives.
        antialias: widen the kernel where samples get fewer.
    """
    target, source = torch.arange(new, dtype=torch.float32), torch.arange(old, dtype=torch.float32)
    if antialias:
        centers = scale * (target + 0.5)
        distances = (source + 0.5 - centers[:, None]) / torch.clamp(scale, min=1.0)
        weights = _cubic(distances, -0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    centers = scale * (target + 0.5) - 0.5
    matrix = torch.zeros((), dtype=torch.float32)
    for tap in (-1, 0, 1, 2):
        index = torch.floor(centers) + tap
        weights = _cubic(centers - index, -0.75)
        hits = index.clamp(0, old - 1)[:, None] == source  # beyond the border its last sample stands
        matrix = matrix + torch.where(hits, weights[:, None], 0.0)
    return matrix


def _cubic(distances: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981), with the `a` that torch takes: -0.5 with antialias, -0.75 without."""
    x = distances.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
