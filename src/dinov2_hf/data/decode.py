"""From bytes to an RGB image, at no more resolution than is needed."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_ORIENTATION = 0x0112  # EXIF tag


class BrokenImage(ValueError):
    """Bytes that cannot be decoded."""


def open_image(data: bytes) -> Image.Image:
    """An image whose pixels are not decoded yet.

    Raises:
        BrokenImage: not an image, or too large to be a photograph.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{len(data)} bytes that are not an image") from error
    except Exception as error:  # Pillow raises anything from OSError to struct.error on malformed files
        raise BrokenImage(str(error) or type(error).__name__) from error


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after its EXIF rotation.

    Raises:
        BrokenImage: the file ends before its EXIF data.
    """
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def decode_rgb(image: Image.Image, reduction: float = 1.0) -> Image.Image:
    """Decodes an opened image to RGB, upright; 16-bit values lose their lower byte.

    JPEG files may come back smaller, at 1/2, 1/4 or 1/8 of their size (`decoded_scale`), never below `1 / reduction`.

    Raises:
        BrokenImage: the pixels cannot be decoded.
    """
    try:
        turned = _orientation(image) != 1
        # the last block of a reduced JPEG may be a part of a pixel; turned, it would lie at the start
        if reduction >= 2 and image.format == "JPEG" and not (turned and any(side % 8 for side in image.size)):
            # draft() scales by the floor of the ratio of the sizes, so never by more than asked
            image.draft("RGB", [math.ceil(side / reduction) for side in image.size])
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BrokenImage(f"pixels of mode {image.mode} have no known range; save them with 8 or 16 bits")
        image = image.convert("RGB")
        return ImageOps.exif_transpose(image) if turned else image
    except BrokenImage:
        raise
    except Exception as error:
        raise BrokenImage(str(error) or type(error).__name__) from error


def decoded_scale(image: Image.Image, width: int, height: int) -> float:
    """Pixels of a decoded image for one of the original, upright `width` x `height`.

    Not the ratio of the sizes: the last row and column of a reduced image may stand for less than a whole one.
    """
    scales = [1 / factor for factor in (1, 2, 4, 8) if image.size == (-(-width // factor), -(-height // factor))]
    assert scales, (image.size, width, height)
    return scales[0]


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # a PNG is decoded up to its EXIF data
        raise BrokenImage(str(error) or type(error).__name__) from error
