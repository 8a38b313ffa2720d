"""What corruptions are built of: blur, convolution, resampling, clouds. All of it on one thread, the same everywhere.

Axes: `C` channels, `H` x `W` pixels, `k` of a kernel; values are floats, an image's in [0, 1].
"""

from __future__ import annotations

from typing import Literal

import numpy as np


def scale_of(image: np.ndarray) -> float:
    """Short side in units of 224 pixels: lengths that were published for crops of 224 grow with it."""
    return min(image.shape[-2:]) / 224


def gaussian(image: np.ndarray, sigma: float, mode: str = "nearest") -> np.ndarray:
    """Gaussian blur of `[..., H, W]`; `mode` says how `scipy.ndimage` continues it beyond its border."""
    return _ndimage().gaussian_filter(image, (0,) * (image.ndim - 2) + (sigma, sigma), mode=mode)


def sample(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`[C, H, W]` at fractional `rows` and `columns` `[H, W]`: bilinear, mirrored at the border."""
    return np.stack([_ndimage().map_coordinates(plane, (rows, columns), order=1, mode="mirror") for plane in image])


def correlate(image: np.ndarray, kernel: np.ndarray, mode: Literal["edge", "reflect"]) -> np.ndarray:
    """Weighted sum of the neighbours of every pixel of `[C, H, W]`; `kernel` `[k, k]` is odd, its middle the pixel.

    Args:
        mode: how `numpy.pad` continues the image.
    """
    margin = len(kernel) // 2
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode)
    size = padded.shape[1:]
    spectrum = np.fft.rfft2(padded) * np.conj(np.fft.rfft2(kernel, size))
    return np.fft.irfft2(spectrum, size)[:, : image.shape[1], : image.shape[2]]


def resize(image: np.ndarray, height: int, width: int, zoom: float = 1.0) -> np.ndarray:
    """`[C, h, w]` stretched to `[C, height, width]`, bilinear, around its centre and enlarged `zoom` times besides."""
    for axis, size in ((1, height), (2, width)):
        old = image.shape[axis]
        middle = (old - 1) / 2
        step = (old - 1) / max(size - 1, 1) / zoom
        place = np.clip(middle + (np.arange(size) - (size - 1) / 2) * step, 0, old - 1)
        low = np.minimum(place.astype(int), max(old - 2, 0))
        share = (place - low).reshape((-1, 1) if axis == 1 else (1, -1))
        image = image.take(low, axis) * (1 - share) + image.take(np.minimum(low + 1, old - 1), axis) * share
    return image


def motion_blur(image: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Smear of `[C, H, W]` to one side: half a Gaussian of `sigma` pixels, cut at `2 * radius` (as ImageMagick's).

    Args:
        degrees: 0 along the rows, 90 along the columns.
    """
    steps = np.arange(int(round(2 * radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * max(sigma, 1e-3) ** 2))
    columns, rows = steps * np.cos(np.deg2rad(degrees)), steps * np.sin(np.deg2rad(degrees))
    margin = len(steps)
    kernel = np.zeros((2 * margin + 1, 2 * margin + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = rows - top, columns - left
    for row, row_share in ((top, 1 - below), (top + 1, below)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            np.add.at(kernel, (row + margin, column + margin), weights * row_share * column_share)
    return correlate(image, kernel / kernel.sum(), "edge")


def clouds(rng: np.random.Generator, height: int, width: int, decay: float) -> np.ndarray:
    """A plasma fractal in [0, 1], `[height, width]`: midpoint displacement on a torus (Fournier et al., 1982).

    Made with 256 pixels a side, of which 224 are stretched over the image.

    Args:
        decay: how many times smaller the square root of the displacement is at half the distance.
    """
    plasma, step = np.zeros((1, 1)), 1.0

    def displaced(first, second, third, fourth):
        return (first + second + third + fourth) / 4 + rng.uniform(-step, step, first.shape)

    while len(plasma) < 256:
        size = len(plasma)
        finer = np.zeros((2 * size, 2 * size))
        down, right = np.roll(plasma, -1, 0), np.roll(plasma, -1, 1)
        centres = displaced(plasma, down, right, np.roll(right, -1, 0))
        finer[::2, ::2], finer[1::2, 1::2] = plasma, centres
        finer[::2, 1::2] = displaced(plasma, right, centres, np.roll(centres, 1, 0))
        finer[1::2, ::2] = displaced(plasma, down, centres, np.roll(centres, 1, 1))
        plasma, step = finer, step / decay**2
    plasma = (plasma - plasma.min()) / np.ptp(plasma)
    return resize(plasma[None, :224, :224], height, width)[0]


def _ndimage():
    try:
        from scipy import ndimage
    except ImportError:
        raise ImportError('corruptions of images need scipy: pip install "dinov2_hf[evaluate]"') from None
    return ndimage
