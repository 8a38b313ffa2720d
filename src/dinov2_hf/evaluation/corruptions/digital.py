"""What software does to images: contrast, warps, large pixels, compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .filters import gaussian, sample


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Of every channel about its mean."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    return (image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def elastic_transform(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A random affine map and random displacements: severities 1 and 2 are mostly the former, the others the latter.

    Lengths are shares of 244 pixels in a crop of 224, as published.
    """
    strength, smooth, shift = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[severity - 1]
    height, width = image.shape[1:]
    short = min(height, width)
    side = short * 244 / 224
    middle, arm = np.array([height // 2, width // 2]), max(short // 3, 1)
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-shift * side, shift * side, (3, 2))
    waves = rng.uniform(-1, 1, (2, height, width))
    waves = gaussian(waves, smooth * side, mode="reflect") * strength * side
    grid = np.indices((height, width)) + waves
    # the map that takes the moved corners back: rows of [y, x, 1] times `back`
    homogeneous = np.column_stack((moved, np.ones(3)))
    back = np.linalg.lstsq(homogeneous, corners, rcond=None)[0]
    rows, columns = np.tensordot(back[:2].T, grid, 1) + back[2][:, None, None]
    return sample(image, rows, columns)


def pixelate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """This share of the pixels per side, each the mean of those it stands for."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[1:]
    small = max(int(width * share), 1), max(int(height * share), 1)

    def coarse(plane: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(plane.astype(np.float32)).resize(small, Image.Resampling.BOX)
        return np.asarray(picture.resize((width, height), Image.Resampling.BOX))

    return np.stack([coarse(plane) for plane in image])


def jpeg_compression(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """In colour for three channels, else channel by channel."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    pixels = np.rint(image * 255).astype(np.uint8)

    def compressed(values: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer, formats=("JPEG",))) / 255

    if len(image) == 3:
        return compressed(pixels.transpose(1, 2, 0)).transpose(2, 0, 1)
    return np.stack([compressed(plane) for plane in pixels])


def saturate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Another HSV saturation, first lower and then higher; hue and value as they were."""
    factor, more = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    value = image.max(axis=0)
    depth = value - image
    saturation = depth.max(axis=0) / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * factor + more, 0, 1)
    return value - depth * np.where(saturation > 0, wanted / np.where(saturation > 0, saturation, 1), 0)
