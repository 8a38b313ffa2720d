"""Masks over the patches of the global crops, in blocks (BEiT, algorithm 1; iBOT, section 3.1) or at random."""

from __future__ import annotations

import math

import numpy as np

from ..config import Masks

_MIN_BLOCK = 4
_LOG_ASPECT_RATIO = math.log(0.3), math.log(1 / 0.3)


def draw_block_mask(
    rng: np.random.Generator,
    grid: tuple[int, int],
    num_masked: float,
    smallest: int = _MIN_BLOCK,
    largest: float = 0.5,
    exact: bool = True,
) -> np.ndarray:
    """A mask `[rows, columns]` of random rectangles that covers `num_masked` patches.

    Rectangles are laid over each other until the number is reached. Where ten in a row do not fit into what is missing,
    the published codes leave it at that; where `exact` is set, the rest grows out of a masked patch. At 16 x 16 and the
    usual ratios of DINOv2 that is one patch in one mask of thirteen; on a grid too small for any rectangle it is the
    whole mask.

    Args:
        smallest: patches of the smallest rectangle.
        largest: share of the grid that a rectangle may cover.
        exact: cover exactly `num_masked` patches, which is a whole number; otherwise at most so many.
    """
    rows, columns = grid
    assert 0 <= num_masked <= rows * columns
    mask = np.zeros(grid, dtype=bool)
    low, high = _LOG_ASPECT_RATIO
    missing = num_masked
    while missing > 0:
        room = min(missing, rows * columns * largest)
        # in Python's floats: numpy is slow at one number at a time
        for size, shape, vertical, horizontal in rng.random((10, 4)).tolist():
            area = smallest + (room - smallest) * size  # more than the room where that is small: blocks may overlap
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
            if exact:
                _grow(rng, mask, int(missing))
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


def draw_random_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """A mask `[rows, columns]` of exactly `num_masked` patches, each as likely as any other."""
    mask = np.zeros(grid, dtype=bool)
    mask.flat[rng.permutation(mask.size)[:num_masked]] = True
    return mask


def draw_batch_masks(rng: np.random.Generator, num_crops: int, grid: tuple[int, int], config: Masks) -> np.ndarray:
    """Masks `[num_crops, rows * columns]` of the crops of a batch, for the whole batch or crop by crop.

    For the batch, as in DINOv2: `int(num_crops * probability)` crops are masked, the others not, and which ones is
    random. The range of ratios is cut into as many equal bins and one ratio is drawn from each, so that every batch
    covers the whole range. A crop of ratio r has exactly `int(rows * columns * r)` masked patches.

    Crop by crop (`config.each_crop`), as in iBOT: a crop is masked with `probability`, and its ratio drawn from the
    range. Blocks have at least `(shorter side // 3) ** 2` patches, and may leave some of the ratio out.
    """
    masks = np.zeros((num_crops, *grid), dtype=bool)
    draw = _draw_masks_of_crops if config.each_crop else _draw_masks_of_batch
    draw(rng, masks, config)
    return masks.reshape(num_crops, -1)


def _draw_masks_of_batch(rng: np.random.Generator, masks: np.ndarray, config: Masks) -> None:
    grid = masks.shape[1], masks.shape[2]
    chosen = rng.permutation(len(masks))[: int(len(masks) * config.probability)]
    edges = np.linspace(*config.ratio, len(chosen) + 1)
    draw = draw_random_mask if config.shape == "random" else draw_block_mask
    for crop, smallest, largest in zip(chosen, edges, edges[1:]):
        masks[crop] = draw(rng, grid, int(math.prod(grid) * rng.uniform(smallest, largest)))


def _draw_masks_of_crops(rng: np.random.Generator, masks: np.ndarray, config: Masks) -> None:
    grid = masks.shape[1], masks.shape[2]
    smallest = (min(grid) // 3) ** 2
    for crop in masks:
        if rng.random() < config.probability:
            num_masked = math.prod(grid) * rng.uniform(*config.ratio)
            if config.shape == "random":
                crop[:] = draw_random_mask(rng, grid, int(num_masked))
            else:
                crop[:] = draw_block_mask(rng, grid, num_masked, smallest, largest=1.0, exact=False)
