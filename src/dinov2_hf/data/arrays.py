"""Images that are stored as numbers: `.npy` arrays and TIFF files of any number of channels.

Axes: `C` channels, `h` x `w` pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import tifffile
import torch
from torch import Tensor

from .encoded import BrokenImage, Decoding
from .opening import check_size, open_with_pillow

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Stored:
    """Numbers of which the header was read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def read_npy(data: bytes) -> Stored:
    """The header of a `.npy` file.

    Raises:
        ValueError: malformed.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"a .npy file of version {version[0]}.{version[1]} is not an array of numbers")
    shape, by_columns, dtype = _HEADERS[version](file)
    offset = file.tell()
    order: Literal["C", "F"] = "F" if by_columns else "C"
    return Stored(
        shape, dtype, lambda: np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order=order)
    )


def read_tiff(data: bytes, num_channels: int) -> Stored:
    """The header of a TIFF file: of its first image, or of all pages where each of them holds a channel.

    Raises:
        BrokenImage: pages of one channel, but not as many as `num_channels`.
        ValueError and others: malformed.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, series = file.pages[0], file.series[0]
        pages = [
            number
            for number, other in enumerate(islice(file.pages, num_channels + 1))
            if (other.shape, other.dtype) == (page.shape, page.dtype)
        ]
        shape = series.shape
        while len(shape) > 2 and shape[0] == 1 != num_channels:
            shape = shape[1:]
        if len(pages) > 1 and len(page.shape) == 2 and shape == page.shape:
            if len(pages) != num_channels:
                count = f"more than {num_channels}" if len(pages) > num_channels else len(pages)
                raise BrokenImage(f"{count} pages of one channel each, not model.num_channels={num_channels}")
            shape = (num_channels, *page.shape)
        else:
            pages = []

    def read() -> np.ndarray:
        try:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                if pages:
                    return np.stack([file.pages[number].asarray() for number in pages])
                return file.series[0].asarray().reshape(shape)
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            return _read_with_pillow(data, pages or range(math.prod(shape) // math.prod(page.shape)), shape, page.dtype)

    return Stored(shape, series.dtype, read)


def _read_with_pillow(data: bytes, pages: Sequence[int], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Pages of a compression that tifffile needs another package for; libtiff reads those of up to four channels."""
    try:
        found = []
        with open_with_pillow(io.BytesIO(data), max_pixels=1 << 62) as image:  # its size was checked before
            for number in pages:
                image.seek(number)
                found.append(np.asarray(image).astype(dtype, casting="same_kind"))
        return np.stack(found).reshape(shape)
    except Exception as error:
        raise BrokenImage("a compressed TIFF file that needs a package: `pip install imagecodecs`") from error


class ArrayImage:
    """Numbers as an image: `[h, w]` (grey), `[h, w, C]` or `[C, h, w]`.

    Integers of 8 and 16 bits are a share of the largest value of their type, or of `2 ** bits - 1` where
    `Decoding.bits` is below 16 and they have 16 bits; booleans are black and white; floats lie in [0, 1].

    Raises:
        BrokenImage: another shape or type, or too many values.
    """

    truncated = False

    def __init__(self, stored: Stored, num_channels: int, decoding: Decoding) -> None:
        shape, dtype = stored.shape, stored.dtype
        if not (dtype.kind in "bf" or (dtype.kind in "iu" and dtype.itemsize <= 2)):
            raise BrokenImage(
                f"values of type {dtype} have no known range; save them as uint8, uint16 or floats in [0, 1]"
            )
        self._stored, self._num_channels = stored, num_channels
        self._grey, self._first = len(shape) == 2, False
        if len(shape) == 3 and shape[2] != num_channels:
            self._first = shape[0] == num_channels
        sides = shape[1:] if self._first else shape[:2]
        channels = (1 if num_channels == 3 else num_channels) if self._grey else num_channels
        fits = math.prod(shape) == math.prod(sides) * channels and len(shape) in (2, 3)
        if not fits or 0 in shape or (self._grey and num_channels not in (1, 3)):
            raise BrokenImage(
                f"an array of shape {shape} is not [h, w, C] or [C, h, w] of model.num_channels={num_channels}"
            )
        self.height, self.width = sides
        check_size(self.width, self.height, decoding.max_pixels, num_channels)
        self.bits = 8 * max(dtype.itemsize, 1)
        self.largest: int | None = None
        self._range: int | None = None
        if dtype.kind in "iu" and dtype != np.uint8:
            used = decoding.bits if dtype.itemsize == 2 and decoding.bits < 16 else None
            self._range = 2**used - 1 if used else int(np.iinfo(dtype).max)

    def cost(self, reduction: float = 1.0) -> int:
        # what is stored and, of other types than uint8, floats of 4 bytes, where a picture takes 7 bytes a pixel
        size = self._stored.dtype.itemsize
        return self.width * self.height * self._num_channels * (size + (4 if size > 1 else 1)) // 7

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        try:
            values = self._stored.read()
        except BrokenImage:
            raise
        except Exception as error:  # decoders raise anything on malformed files
            raise BrokenImage(str(error) or type(error).__name__) from error
        values = self._in_range(values)
        if self._grey:
            values = np.repeat(values[:, :, None], self._num_channels, axis=2)
        elif self._first:
            values = values.transpose(1, 2, 0)
        return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1), 1.0

    def _in_range(self, values: np.ndarray) -> np.ndarray:
        """uint8, or float32 in [0, 1]."""
        if values.dtype == np.uint8:
            return values.copy()
        if values.dtype.kind == "b":
            return values * np.uint8(255)
        low, high = values.min(), values.max()
        if values.dtype.kind == "f":
            if not (low >= 0 and high <= 1):
                raise BrokenImage(f"values from {low:g} to {high:g}; floats have to lie in [0, 1]")
            return values.astype(np.float32)
        if low < 0:
            raise BrokenImage(
                f"values from {low} to {high}; negative ones have no brightness; shift them and save them as uint16"
            )
        assert self._range is not None
        if high > self._range:
            raise BrokenImage(f"the value {high} has more bits than data.bits={self._range.bit_length()}")
        if values.dtype.itemsize == 2:
            self.largest = int(high)
        shares = values.astype(np.float32)
        shares /= self._range
        return shares
