"""Images as Python objects, and their bytes."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ..fetch import Missing, read_bytes
from ..names import few, one_line

KINDS = "a path, the bytes of an encoded image, a NumPy array, a PIL image or None, or one of these with a name"
"""The objects that stand for an image."""


def encode_image(item: Any) -> tuple[bytes, str | None]:
    """Returns the bytes of an image, which decode to its values, and its name if it has one.

    Args:
        item: a path or URL; the bytes of an encoded image; an array or a tensor (`[h, w]`, `[h, w, C]` or
            `[C, h, w]`, as in `.npy` files); a PIL image; None for an image that cannot be read, which counts as
            broken; or a tuple `(image, "name")` of one of these. The bytes are `fetch.Missing` where there are none.

    Raises:
        TypeError: another object; says what it is.
    """
    image, name = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(name, (str, type(None))):
        raise TypeError(_type_of(item))
    if image is None:
        return Missing("None stands for it"), name
    if isinstance(image, Missing):
        return image, name
    if isinstance(image, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(image))
        return read_bytes(path), name or path
    if isinstance(image, (bytes, bytearray, memoryview)):
        return image if isinstance(image, bytes) and image else bytes(image) or Missing("it has 0 bytes"), name
    file = io.BytesIO()
    try:
        if isinstance(image, Tensor):
            image = image.numpy(force=True)
        if isinstance(image, np.ndarray):  # copied now: a generator may fill the same array again
            np.save(file, image, allow_pickle=False)
        elif isinstance(image, Image.Image):
            ImageOps.exif_transpose(image).save(file, "PNG", compress_level=0)
        else:
            raise TypeError(_type_of(item))
    except (OSError, ValueError) as error:
        return Missing(f"cannot be stored: {one_line(error)}"), name
    return file.getvalue(), name


def _type_of(item: Any) -> str:
    if isinstance(item, tuple):
        return f"a tuple of {few(type(part).__name__ for part in item) or 'nothing'}"
    return f"an object of the type {type(item).__name__}"
