"""Weather between the camera and the scene. Frost is made here; the published one lays photographs over the image."""

from __future__ import annotations

import numpy as np

from .filters import clouds, motion_blur, resize, sample, scale_of

_ICE = (0.86, 0.95, 1.0)
"""Colour of frost, where there are three channels."""


def snow(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Flakes that fall, twice, over a scene that has lost some of its colour."""
    loc, spread, zoom, lowest, radius, sigma, clear = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    scale, (height, width) = scale_of(image), image.shape[1:]
    zoom = max(zoom * scale, 1)
    flakes = rng.normal(loc, spread, (1, int(np.ceil(height / zoom)), int(np.ceil(width / zoom))))
    flakes = resize(flakes, height, width)
    flakes = np.where(flakes < lowest, 0, flakes.clip(0, 1))
    flakes = motion_blur(flakes, radius * scale, sigma * scale, rng.uniform(-135, -45))
    faded = np.maximum(image, _luminance(image) * 1.5 + 0.5)
    return clear * image + (1 - clear) * faded + flakes + flakes[:, ::-1, ::-1]


def frost(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Crystals over a darkened scene, mixed with the published weights."""
    scene, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    tint = np.ones(len(image)) if len(image) != 3 else np.array(_ICE)
    return scene * image + ice * tint[:, None, None] * _crystals(rng, *image.shape[1:])


def fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Clouds of light, and less contrast."""
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    brightest = image.max()
    height, width = image.shape[1:]
    return (image + amount * clouds(rng, height, width, decay)) * brightest / (brightest + amount)


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """More of HSV's value, hue and saturation as they were."""
    value = image.max(axis=0)
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def _luminance(image: np.ndarray) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114]) if len(image) == 3 else np.full(len(image), 1 / len(image))
    return np.tensordot(weights, image, 1)[None]


def _crystals(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ice on a pane, `[1, height, width]`, from 0 to 1: needles that fan out from many places, thicker in some."""
    scale = min(height, width) / 224
    waves = 24 * scale * (np.stack([clouds(rng, height, width, 2) for _ in range(2)]) - 0.5)
    seeds = rng.random((1, height, width)) ** 30
    needles = []
    for angle in rng.uniform(0, 60) + np.arange(0, 360, 60):
        grown = motion_blur(seeds, 7 * scale, 5 * scale, angle)
        needles.append(grown / max(grown.max(), 1e-9))
    bent = sample(np.max(needles, axis=0), *(np.indices((height, width)) + waves))  # a little
    bent = (bent - bent.min()) / max(np.ptp(bent), 1e-9)
    cover = clouds(rng, height, width, 1.5)
    return np.clip(0.6 * cover + bent * (0.3 + cover), 0, 1)
