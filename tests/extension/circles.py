"""A source of images that is a Python generator: discs on a plain background."""

import numpy as np

from dinov2_hf.data import register_source

COUNT, SIDE = 24, 48


def draw(index):
    rng = np.random.default_rng(index)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    (row, column), radius = rng.uniform(12, SIDE - 12, 2), rng.uniform(6, 12)
    inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return np.where(inside[..., None], *rng.integers(0, 255, (2, 3))).astype(np.uint8)


@register_source("circles")
def circles(start=0):
    for index in range(start, COUNT):
        yield draw(index), f"circle {index}"
