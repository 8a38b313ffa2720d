"""Block-wise masks over the patches of the global crops (BEiT, algorithm 1; iBOT, section 3.1)."""

from __future__ import annotations

import math

import numpy as np

_MIN_BLOCK = 4
_ASPECT_RATIO = (0.3, 1 / 0.3)


def draw_block_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """A mask `[rows, columns]` of random rectangles that covers `num_masked` patches, or a few less.

    Rectangles of 4 patches up to half of the grid are laid over each other until the number is reached or ten in a
    row do not fit; it is never exceeded.
    """
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    low, high = (math.log(ratio) for ratio in _ASPECT_RATIO)
    covered = 0
    while covered < num_masked:
        room = min(num_masked - covered, rows * columns / 2)
        for _ in range(10):
            area = rng.uniform(min(_MIN_BLOCK, room), room)
            ratio = math.exp(rng.uniform(low, high))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= rows or width >= columns:
                continue
            top = int(rng.integers(0, rows - height + 1))
            left = int(rng.integers(0, columns - width + 1))
            block = mask[top : top + height, left : left + width]
            added = block.size - int(block.sum())
            if 0 < added <= room:
                block[:] = True
                covered += added
                break
        else:
            break
    return mask


def draw_batch_masks(
    rng: np.random.Generator,
    num_crops: int,
    grid: tuple[int, int],
    mask_probability: float,
    mask_ratio: tuple[float, float],
) -> np.ndarray:
    """Masks `[num_crops, rows * columns]`: `int(num_crops * mask_probability)` crops masked, the others not.

    The range of ratios is cut into as many equal bins as crops are masked and one ratio is drawn from each, so that
    every batch covers the whole range; which crops are masked is random.
    """
    patches = grid[0] * grid[1]
    masks = np.zeros((num_crops, *grid), dtype=bool)
    chosen = rng.permutation(num_crops)[: int(num_crops * mask_probability)]
    edges = np.linspace(*mask_ratio, len(chosen) + 1)
    for crop, smallest, largest in zip(chosen, edges, edges[1:]):
        masks[crop] = draw_block_mask(rng, grid, int(patches * rng.uniform(smallest, largest)))
    return masks.reshape(num_crops, patches)
