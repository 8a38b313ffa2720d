"""Corruptions of images, made on the fly (Hendrycks and Dietterich, 2019: ImageNet-C).

The fifteen of the benchmark and three of its four further ones, with the published parameters of each severity. They
differ from the published images in what cannot be shared or was tied to 224 pixels: frost is generated instead of
photographed, the motion of `motion_blur` and `snow` is resampled linearly, lengths in pixels grow with the short side,
and values are rounded, not cut. At 224 pixels everything else is as published.
"""

from __future__ import annotations

import numpy as np

from . import blur, digital, noise, weather

_FUNCTIONS = {
    function.__name__: function
    for function in (
        noise.gaussian_noise,
        noise.shot_noise,
        noise.impulse_noise,
        blur.defocus_blur,
        blur.glass_blur,
        blur.motion_blur,
        blur.zoom_blur,
        weather.snow,
        weather.frost,
        weather.fog,
        weather.brightness,
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        digital.jpeg_compression,
        noise.speckle_noise,
        blur.gaussian_blur,
        digital.saturate,
    )
}


def corrupt(pixels: np.ndarray, name: str, severity: int, seed: int = 0, image: int = 0) -> np.ndarray:
    """A corrupted copy of `pixels` `[C, H, W]` of the same type: uint8, or floats in [0, 1].

    The same arguments give the same pixels on any process.

    Args:
        severity: 1 to 5.
        seed: of everything.
        image: a number that tells the image from others.

    Raises:
        ValueError: an unknown name or severity.
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"corruption {name!r} is none of {', '.join(_FUNCTIONS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity={severity} is not one of 1, 2, 3, 4, 5")
    rng = np.random.default_rng([seed, image, list(_FUNCTIONS).index(name), severity])
    unit = pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)
    changed = np.clip(_FUNCTIONS[name](unit, severity, rng), 0, 1)
    return np.rint(changed * 255).astype(np.uint8) if pixels.dtype == np.uint8 else changed.astype(pixels.dtype)
