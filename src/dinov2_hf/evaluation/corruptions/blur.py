"""Blur of lens, glass and movement: lengths were published for 224 pixels and grow with the image."""

from __future__ import annotations

import math

import numpy as np

from .filters import correlate, gaussian, resize, scale_of
from .filters import motion_blur as smear


def gaussian_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return gaussian(image, (1, 2, 3, 4, 6)[severity - 1] * scale_of(image))


def defocus_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A disk with a soft edge."""
    radius: float
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    radius *= scale_of(image)
    reach = np.arange(-math.ceil(radius) - 2, math.ceil(radius) + 3)
    disk = np.clip(radius - np.hypot(*np.meshgrid(reach, reach)) + 0.5, 0, 1)
    disk = gaussian(disk, edge, mode="constant")
    return correlate(image, disk / disk.sum(), "reflect")


def glass_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur, pixels that change places with near ones, one after the other, and blur once more."""
    reach: float
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    sigma, reach = sigma * scale_of(image), reach * scale_of(image)
    height, width = image.shape[1:]
    margin = math.ceil(reach)
    rows, columns = np.arange(height - margin, margin, -1), np.arange(width - margin, margin, -1)
    places = (rows[:, None] * width + columns).ravel()
    order = list(range(height * width))
    for _ in range(times):
        # whole pixels: of a fractional reach the next one as often as its fraction says
        whole = math.floor(reach) + (rng.random(len(places)) < reach % 1)
        down, right = np.floor(rng.uniform(-whole, whole, (2, len(places)))).astype(int)
        for here, there in zip(places.tolist(), (places + down * width + right).tolist()):
            order[here], order[there] = order[there], order[here]
    blurred = gaussian(image, sigma).reshape(len(image), -1)
    return gaussian(blurred[:, order].reshape(image.shape), sigma)


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Of a camera that moves within 45 degrees of level."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return smear(image, radius * scale_of(image), sigma * scale_of(image), rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of enlargements up to the factor `last`."""
    last, step = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.24, 0.02), (1.30, 0.03))[severity - 1]
    factors = [1 + step * number for number in range(round((last - 1) / step) + 1)]
    height, width = image.shape[1:]
    return (image + sum(resize(image, height, width, factor) for factor in factors)) / (len(factors) + 1)
