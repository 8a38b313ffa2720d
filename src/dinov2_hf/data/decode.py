"""From bytes to pixels, at no more resolution than is needed.

Axes: `C` channels, `h` x `w` pixels of what was decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import UnidentifiedImageError
from torch import Tensor

from .arrays import ArrayImage, read_npy, read_tiff
from .encoded import DEFAULT_DECODING, BrokenImage, Decoding, EncodedImage
from .fetch import Missing
from .formats import what_it_is
from .pictures import Picture
from .pixel_budget import reserve

__all__ = [
    "DEFAULT_DECODING",
    "SHALLOW_BITS",
    "BrokenImage",
    "Decoding",
    "EncodedImage",
    "decoded",
    "is_shallow",
    "open_image",
]

SHALLOW_BITS = 12
"""Of many cameras and scanners, which keep their values in 16."""

_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_image(data: bytes, num_channels: int = 3, decoding: Decoding = DEFAULT_DECODING) -> EncodedImage:
    """Opens a picture of a format in `data.formats`, a `.npy` array or a TIFF of any number of channels.

    Pictures become grey or RGB for 1 or 3 channels; for other numbers their own channels have to be as many. 16-bit
    pictures lose their lower byte for 3 channels only. Of an animation this is the first frame. A TIFF of as many grey
    pages as `num_channels` has a channel in each. Arrays are `[h, w]`, `[h, w, C]` or `[C, h, w]`; for their types see
    `ArrayImage`.

    Raises:
        BrokenImage: not an image, of too many pixels, or of other channels.
    """
    if isinstance(data, Missing):
        raise BrokenImage(data.reason)
    try:
        if data.startswith(_NPY):
            return ArrayImage(read_npy(data), num_channels, decoding)
        if data.startswith(_TIFF):
            return _open_tiff(data, num_channels, decoding)
        return Picture(data, num_channels, decoding)
    except UnidentifiedImageError as error:
        raise BrokenImage(what_it_is(data) or f"{len(data)} bytes that are not an image") from error
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise anything from OSError to struct.error on malformed files
        raise BrokenImage(str(error) or type(error).__name__) from error


@contextmanager
def decoded(image: EncodedImage, reduction: float, decoding: Decoding) -> Iterator[tuple[Tensor, float]]:
    """What `image.decode` gives, within the budget of pixels that `decoding` sets for all processes on the machine.

    Raises:
        BrokenImage: the pixels cannot be decoded.
    """
    with reserve(image.cost(reduction), decoding.pixel_budget):
        yield image.decode(reduction)


def is_shallow(image: EncodedImage, decoding: Decoding) -> bool:
    """Whether a decoded image of 16 bits uses 12 or fewer, so that it is nearly black."""
    return decoding.bits == 16 and image.largest is not None and image.largest < 1 << SHALLOW_BITS


def _open_tiff(data: bytes, num_channels: int, decoding: Decoding) -> EncodedImage:
    """As a picture for 1 and 3 channels where Pillow reads it, else as an array."""
    picture = None
    if num_channels in (1, 3):
        try:
            picture = Picture(data, num_channels, decoding)
        except BrokenImage:
            raise
        except Exception:  # tifffile reads more, and says what is wrong
            picture = None
    if picture is not None and picture.bits != 32 and not (picture.deep_colours and decoding.bits != 16):
        frames = picture.num_frames if picture.deep or picture.mode == "L" else 1
        if frames == 1 or (num_channels == 3 and frames != 3):
            return picture
        try:
            return ArrayImage(read_tiff(data, num_channels), num_channels, decoding)
        except Exception:
            if num_channels == 3:
                return picture
            raise
    return ArrayImage(read_tiff(data, num_channels), num_channels, decoding)
