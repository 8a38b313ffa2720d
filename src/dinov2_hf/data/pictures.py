"""Pictures that Pillow opens, decoded with as few copies as possible.

Axes: `C` channels, `h` x `w` pixels of what was decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from .encoded import BrokenImage, Decoding
from .opening import open_with_pillow, own_limit
from .truncated import completed

if TYPE_CHECKING:  # importing them changes the order in which Pillow tries its formats
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels that pictures are converted to."""

_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_BAND = 1 << 20
"""Pixels that are converted at a time where an image is large."""
LARGE = 4 * _BAND
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, k=-1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, k=1),
}
"""From stored pixels `[h, w]` or `[h, w, C]` to upright ones, by EXIF orientation."""


class Picture:
    """What Pillow opens; JPEG pixels come straight from libjpeg-turbo, which saves two copies.

    Raises:
        BrokenImage, UnidentifiedImageError: see `open_with_pillow`; anything else from a malformed file.
    """

    largest: int | None = None
    truncated = False

    def __init__(self, data: bytes, num_channels: int, decoding: Decoding) -> None:
        self._data, self._num_channels, self._decoding = data, num_channels, decoding
        self._image: Image.Image | None = None
        image = self._opened()
        # Pillow turns TIFF files by itself
        self._turn = 1 if image.format == "TIFF" else _exif(image, data).get(_ORIENTATION, 1)
        self._size, self.mode, self.format = image.size, image.mode, image.format
        self.width, self.height = self._size[:: -1 if self._turn in (5, 6, 7, 8) else 1]
        rawmode = _rawmode(image)
        self.deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
        """Whether it is grey of 16 bits."""
        self.deep_colours = not self.deep and ";16" in rawmode and image.mode != "I"
        """Whether it has colours of 16 bits, of which Pillow keeps the upper byte."""
        self.bits = 16 if self.deep or self.deep_colours else 32 if image.mode in ("I", "F") else 8
        stated = 16
        if self.deep and image.format == "TIFF":
            stated = cast("TiffImageFile", image).tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        # a file that states its range needs no setting
        self._used_bits = 16 if image.format == "PPM" else stated if stated < 16 else decoding.bits
        self._progressive = bool(image.info.get("progressive") or image.info.get("progression"))

    def cost(self, reduction: float = 1.0) -> int:
        # libjpeg holds the coefficients of a progressive file at full size
        factor = 1 if self._progressive else self._factor(reduction)
        return self.width * self.height // factor**2

    @property
    def num_frames(self) -> int:
        """Pages or frames."""
        return getattr(self._opened(keep=True), "n_frames", 1)

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        factor = self._factor(reduction)
        try:
            pixels = self._decode_jpeg(factor)
            if pixels is None:
                pixels = self._decode_any(factor)
        except BrokenImage:
            raise
        except Exception as error:
            message = str(error) or type(error).__name__
            if not (self._decoding.truncated_jpegs and self.format in ("JPEG", "MPO") and "truncated" in message):
                raise BrokenImage(message) from error
            pixels, self.truncated = self._decode_any(factor, completed(self._data)), True
        pixels = _UPRIGHT.get(self._turn, np.asarray)(pixels)
        assert pixels.shape[:2] == (-(-self.height // factor), -(-self.width // factor)), (pixels.shape, factor)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels))
        return (tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)), 1 / factor

    def _opened(self, keep: bool = False) -> Image.Image:
        """The image, not decoded; opened again where it was decoded."""
        image, self._image = self._image, None
        if image is None:
            image = open_with_pillow(io.BytesIO(self._data), self._decoding.max_pixels)
        if keep:
            self._image = image
        return image

    def _factor(self, reduction: float) -> int:
        # the last block of a reduced JPEG may be a part of a pixel; turned, it would lie at the start
        if self.format != "JPEG" or reduction < 2 or (self._turn != 1 and any(side % 8 for side in self._size)):
            return 1
        return 2 ** min(int(math.log2(reduction)), 3)

    def _decode_jpeg(self, factor: int) -> np.ndarray | None:
        if self.format != "JPEG" or self._turn != 1 or self.mode not in ("L", "RGB"):
            return None
        if self._num_channels not in MODES:
            return None
        width, height = (-(-side // factor) for side in self._size)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, "GRAY" if self._num_channels == 1 else "RGB", min_width=width, min_height=height
            )
        except ValueError:  # a warning is enough; Pillow distinguishes missing data from merely odd data
            return None
        return pixels if pixels.shape[:2] == (height, width) else None

    def _decode_any(self, factor: int, data: bytes | None = None) -> np.ndarray:
        mode = MODES.get(self._num_channels)
        image = self._opened() if data is None else open_with_pillow(io.BytesIO(data), self._decoding.max_pixels)
        if factor > 1:
            # draft() takes the largest scale that the floor of the ratio of the sizes allows: this one
            width, height = (max(side // factor, 1) for side in image.size)
            image.draft(mode, (width, height))
        if self.bits == 32:
            raise BrokenImage(f"pixels of mode {self.mode} have no known range; save them with 8 or 16 bits")
        if self.deep_colours and self._decoding.bits != 16:
            raise BrokenImage(
                f"colours of 16 bits in a {self.format} file are read by their upper byte, so that "
                f"data.bits={self._decoding.bits} cannot scale them; save them as TIFF or .npy"
            )
        if not self.deep:
            return self._in_bands(
                image, lambda band: np.asarray(band if mode in (None, band.mode) else band.convert(mode))
            )
        pixels = self._in_bands(image, lambda band: np.asarray(band).astype(np.uint16))
        del image
        self.largest = int(pixels.max())
        if self.largest >> self._used_bits:
            raise BrokenImage(f"the value {self.largest} has more bits than data.bits={self._used_bits}")
        if self._num_channels == 3:
            pixels >>= self._used_bits - 8
            return np.repeat(pixels.astype(np.uint8)[:, :, None], 3, axis=2)
        self._check_channels(pixels)
        values = pixels.astype(np.float32)
        values /= 2**self._used_bits - 1
        return values

    def _in_bands(self, image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
        """What `convert` makes of the image, band by band where it is large: the same pixels without large copies."""
        width, height = image.size
        # TIFF files are measured again when they are loaded
        with own_limit() if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS else nullcontext():
            image.load()
        if width * height <= LARGE:
            pixels = np.array(convert(image))
            self._check_channels(pixels)
            return pixels
        rows = max(_BAND // width, 1)
        whole: np.ndarray | None = None
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            band = convert(image.crop((0, top, width, bottom)))
            if whole is None:
                self._check_channels(band)
                whole = np.empty((height, *band.shape[1:]), band.dtype)
            whole[top:bottom] = band
        assert whole is not None
        return whole

    def _check_channels(self, pixels: np.ndarray) -> None:
        found = 1 if pixels.ndim == 2 else pixels.shape[2]
        if found != self._num_channels and not self.deep:
            raise BrokenImage(f"{found} channels, not model.num_channels={self._num_channels}")


def _rawmode(image: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words; empty where it does not say."""
    tiles = cast("ImageFile", image).tile
    parameters = tiles[0][3] if tiles else ""
    first = parameters[0] if isinstance(parameters, tuple) and parameters else parameters
    return first if isinstance(first, str) else ""


def _exif(image: Image.Image, data: bytes) -> Image.Exif:
    """EXIF data, for which Pillow decodes a PNG as a whole: here those of an empty PNG with the same texts."""
    if image.format != "PNG":
        return image.getexif()
    texts = [chunk for kind, chunk in _chunks(data) if kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")]
    if not texts:
        return Image.Exif()
    empty = io.BytesIO()
    Image.new("1", (1, 1)).save(empty, "PNG")
    start = 8 + 25  # signature and header
    return open_with_pillow(io.BytesIO(empty.getvalue()[:start] + b"".join(texts) + empty.getvalue()[start:])).getexif()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each whole chunk of a PNG file."""
    place = 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            return
        yield data[place + 4 : place + 8], data[place:end]
        place = end
