"""Block-wise masks over the patches of the global crops (BEiT, algorithm 1; iBOT, section 3.1)."""

from __future__ import annotations

import math

import numpy as np

_MIN_BLOCK = 4
_LOG_ASPECT_RATIO = math.log(0.3), math.log(1 / 0.3)


def draw_block_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """A mask `[rows, columns]` of random rectangles that covers exactly `num_masked` patches.

    Rectangles of 4 patches up to half of the grid are laid over each other until the number is reached. Where ten in
    a row do not fit into what is missing, the published code leaves it at that; here the rest grows out of a masked
    patch. At 16 x 16 and the usual ratios that is one patch in one mask of thirteen; on a grid too small for any
    rectangle it is the whole mask.
    """
    rows, columns = grid
    assert 0 <= num_masked <= rows * columns
    mask = np.zeros(grid, dtype=bool)
    low, high = _LOG_ASPECT_RATIO
    missing = num_masked
    while missing:
        room = min(missing, rows * columns / 2)
        # in Python's floats: numpy is slow at one number at a time
        for size, shape, vertical, horizontal in rng.random((10, 4)).tolist():
            area = _MIN_BLOCK + (room - _MIN_BLOCK) * size  # more than the room where that is small: blocks may overlap
            ratio = math.exp(low + (high - low) * shape)
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= rows or width >= columns:
                continue
            top, left = int(vertical * (rows - height + 1)), int(horizontal * (columns - width + 1))
            block = mask[top : top + height, left : left + width]
            added = block.size - np.count_nonzero(block)
            if 0 < added <= room:
                block[:] = True
                missing -= added
                break
        else:
            _grow(rng, mask, missing)
            break
    return mask


def _grow(rng: np.random.Generator, mask: np.ndarray, missing: int) -> None:
    """Masks the `missing` patches nearest to a point within a random masked patch (any patch, where none is).

    What lies between the point and the nearest of them is masked already, so they adjoin the mask.
    """
    starts = np.argwhere(mask if mask.any() else ~mask)
    row, column = rng.choice(starts) + rng.random(2) - 0.5
    distance = np.add.outer((np.arange(mask.shape[0]) - row) ** 2, (np.arange(mask.shape[1]) - column) ** 2)
    distance[mask] = np.inf
    mask.flat[distance.argsort(axis=None)[:missing]] = True


def draw_batch_masks(
    rng: np.random.Generator,
    num_crops: int,
    grid: tuple[int, int],
    mask_probability: float,
    mask_ratio: tuple[float, float],
) -> np.ndarray:
    """Masks `[num_crops, rows * columns]`: `int(num_crops * mask_probability)` crops masked, the others not.

    The range of ratios is cut into as many equal bins as crops are masked and one ratio is drawn from each, so that
    every batch covers the whole range; which crops are masked is random. A crop of ratio r has exactly
    `int(rows * columns * r)` masked patches.
    """
    patches = grid[0] * grid[1]
    masks = np.zeros((num_crops, *grid), dtype=bool)
    chosen = rng.permutation(num_crops)[: int(num_crops * mask_probability)]
    edges = np.linspace(*mask_ratio, len(chosen) + 1)
    for crop, smallest, largest in zip(chosen, edges, edges[1:]):
        masks[crop] = draw_block_mask(rng, grid, int(patches * rng.uniform(smallest, largest)))
    return masks.reshape(num_crops, patches)
