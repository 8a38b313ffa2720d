"""Noise of sensors: independent for every value, whatever the size of the image."""

from __future__ import annotations

import numpy as np


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Of low light."""
    return image + rng.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], image.shape)


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Of counting photons: so many of them make full white."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """This share of the values becomes 0 or 1."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, white = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, white, image)


def speckle_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """In proportion to the light."""
    return image + image * rng.normal(0, (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1], image.shape)
