"""From bytes to pixels, at no more resolution than is needed.

Axes: `C` channels, `h` x `w` pixels of what was decoded.
"""

from __future__ import annotations

import io
import math
from typing import Protocol

import numpy as np
import simplejpeg
import tifffile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .fetch import Missing

_ORIENTATION = 0x0112  # EXIF tag
_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = {1: "L", 3: "RGB"}
_MOST_VALUES = 2 * Image.MAX_IMAGE_PIXELS
"""An array of more is no image but an attack on the memory: 179 million, where Pillow draws the line for pixels."""


class BrokenImage(ValueError):
    """Bytes that cannot be decoded."""


class EncodedImage(Protocol):
    """An image of which the size is known and the pixels are not decoded yet."""

    width: int
    height: int
    """In pixels, of the upright image."""

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        """Pixels `[C, h, w]` of the upright image, and how many of them there are for one of the original, per side.

        uint8, channels last in memory; or float32 in [0, 1] where the source is deeper. JPEG files may come back
        smaller, at 1/2, 1/4 or 1/8 of their size, never below `1 / reduction`.

        Raises:
            BrokenImage: the pixels cannot be decoded.
        """


def open_image(data: bytes, num_channels: int = 3) -> EncodedImage:
    """Opens a picture (anything that Pillow reads), a `.npy` array or a TIFF of any number of channels.

    Pictures become grey or RGB for 1 or 3 channels; for other numbers their own channels have to be as many. 16-bit
    pictures lose their lower byte for 3 channels alone. Of an animation this is the first frame. Arrays are `[h, w]`,
    `[h, w, C]` or `[C, h, w]`, of uint8, uint16 (a share of 65,535) or floats in [0, 1].

    Raises:
        BrokenImage: not an image, too large to be a photograph, or of other channels.
    """
    if isinstance(data, Missing):
        raise BrokenImage(data.reason)
    try:
        if data.startswith(_NPY):
            return _Array(np.load(io.BytesIO(data), allow_pickle=False), num_channels)
        if num_channels != 3 and data.startswith(_TIFF):
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.series[0]
                _refuse_huge(page.shape)
                return _Array(page.asarray(), num_channels)
        return _Picture(data, num_channels)
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{len(data)} bytes that are not an image") from error
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise anything from OSError to struct.error on malformed files
        raise BrokenImage(str(error) or type(error).__name__) from error


class _Picture:
    """What Pillow opens; JPEG pixels come straight from libjpeg-turbo, which saves two copies."""

    def __init__(self, data: bytes, num_channels: int) -> None:
        self._data, self._num_channels = data, num_channels
        self._image = Image.open(io.BytesIO(data))
        # Pillow turns TIFF files by itself; a PNG is decoded up to its EXIF data
        self._turn = 1 if self._image.format == "TIFF" else self._image.getexif().get(_ORIENTATION, 1)
        self.width, self.height = self._image.size[:: -1 if self._turn in (5, 6, 7, 8) else 1]

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        factor = self._factor(reduction)
        try:
            pixels = self._decode_jpeg(factor)
            if pixels is None:
                pixels = self._decode_any(factor)
        except BrokenImage:
            raise
        except Exception as error:
            raise BrokenImage(str(error) or type(error).__name__) from error
        assert pixels.shape[:2] == (-(-self.height // factor), -(-self.width // factor)), (pixels.shape, factor)
        tensor = torch.from_numpy(pixels)
        return (tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)), 1 / factor

    def _factor(self, reduction: float) -> int:
        image = self._image
        # the last block of a reduced JPEG may be a part of a pixel; turned, it would lie at the start
        if image.format != "JPEG" or reduction < 2 or (self._turn != 1 and any(side % 8 for side in image.size)):
            return 1
        return 2 ** min(int(math.log2(reduction)), 3)

    def _decode_jpeg(self, factor: int) -> np.ndarray | None:
        image = self._image
        if image.format != "JPEG" or self._turn != 1 or image.mode not in ("L", "RGB"):
            return None
        if self._num_channels not in _MODES:
            return None
        width, height = (-(-side // factor) for side in image.size)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, "GRAY" if self._num_channels == 1 else "RGB", min_width=width, min_height=height
            )
        except ValueError:  # a warning is enough; Pillow tells what is missing from what is merely odd
            return None
        return pixels if pixels.shape[:2] == (height, width) else None

    def _decode_any(self, factor: int) -> np.ndarray:
        image, mode = self._image, _MODES.get(self._num_channels)
        if factor > 1:
            # draft() takes the largest scale that the floor of the ratio of the sizes allows: this one
            image.draft(mode, [max(side // factor, 1) for side in image.size])
        deep = image.mode.startswith("I;16")
        if image.mode in ("I", "F"):
            raise BrokenImage(f"pixels of mode {image.mode} have no known range; save them with 8 or 16 bits")
        if deep and self._num_channels == 3:
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if mode is not None and not (deep and mode == "L"):
            image = image.convert(mode)
        if self._turn != 1:
            image = ImageOps.exif_transpose(image)
        pixels = np.array(image)
        found = 1 if pixels.ndim == 2 else pixels.shape[2]
        if found != self._num_channels:
            raise BrokenImage(f"{found} channels, not model.num_channels={self._num_channels}")
        return pixels.astype(np.float32) / 65535 if deep and self._num_channels != 3 else pixels


class _Array:
    """Pixels that were stored as numbers."""

    def __init__(self, values: np.ndarray, num_channels: int) -> None:
        _refuse_huge(values.shape)
        if values.ndim == 2:
            values = values[:, :, None]
        if values.ndim == 3 and values.shape[2] != num_channels and values.shape[0] == num_channels:
            values = values.transpose(1, 2, 0)
        if values.ndim != 3 or values.shape[2] != num_channels or 0 in values.shape:
            raise BrokenImage(
                f"an array of shape {values.shape} is not [h, w, C] or [C, h, w] of model.num_channels={num_channels}"
            )
        if values.dtype == np.uint16:
            values = values.astype(np.float32) / 65535
        elif values.dtype.kind == "f":
            values = values.astype(np.float32)
            if not (values.min() >= 0 and values.max() <= 1):
                raise BrokenImage(f"values from {values.min():g} to {values.max():g}; floats have to lie in [0, 1]")
        elif values.dtype != np.uint8:
            raise BrokenImage(f"values of type {values.dtype}; use uint8, uint16 or floats in [0, 1]")
        self.height, self.width = values.shape[:2]
        self._values = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        return self._values, 1.0


def _refuse_huge(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MOST_VALUES:
        raise BrokenImage(f"{' x '.join(map(str, shape))} values are too many for an image")
