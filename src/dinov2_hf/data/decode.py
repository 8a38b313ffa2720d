"""From bytes to an RGB image, at no more resolution than is needed."""

from __future__ import annotations

import io

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
    """Width and height of an opened image after its EXIF rotation."""
    width, height = image.size
    sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if sideways else (width, height)


def decode_rgb(image: Image.Image, reduction: float = 1.0) -> Image.Image:
    """Decodes an opened image to RGB, upright.

    JPEG files may come back smaller, at 1/2, 1/4 or 1/8 of their size, but never by more than `reduction`.

    Raises:
        BrokenImage: the pixels cannot be decoded.
    """
    try:
        if reduction >= 2 and image.format == "JPEG":
            # draft() scales by the floor of the ratio of the sizes; asking for one pixel more never goes too far
            image.draft("RGB", [int(side / reduction) + 1 for side in image.size])
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        image = image.convert("RGB")
        return ImageOps.exif_transpose(image) if turned else image
    except Exception as error:
        raise BrokenImage(str(error) or type(error).__name__) from error
