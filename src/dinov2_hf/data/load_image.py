"""Opens an image as training sees it, for stock pipelines."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from .crops import as_crop
from .decode import Decoding, decoded, open_image


def load_image(path: str | os.PathLike[str] | bytes, bits: int = Decoding.bits) -> Image.Image:
    """Opens an image in RGB with the pixels that training and evaluation get.

    `pipeline("image-feature-extraction")` converts grey of 16 bits by clipping it to white; this keeps its upper byte.

    Args:
        path: a file that `data.formats.READABLE` has, or its bytes.
        bits: `data.bits` of the run.

    Raises:
        BrokenImage: it cannot be decoded.
        FileNotFoundError: nothing there.
    """
    decoding = Decoding(bits)
    image = open_image(path if isinstance(path, bytes) else Path(path).read_bytes(), 3, decoding)
    with decoded(image, 1.0, decoding) as (pixels, _):
        return Image.fromarray(as_crop(pixels).permute(1, 2, 0).contiguous().numpy())
