"""The one place where Pillow opens a file."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .encoded import BrokenImage, Decoding
from .formats import PILLOW_FORMATS, PLUGINS

_limit = threading.RLock()
_plugins: list[str] | None = None


def open_with_pillow(file: BinaryIO | str, max_pixels: int = Decoding.max_pixels) -> Image.Image:
    """Opens a picture of a format on the list, or of an installed plug-in, without decoding it.

    Raises:
        BrokenImage: more than `max_pixels` pixels.
        UnidentifiedImageError: of another format; anything else from a malformed file.
    """
    try:
        with own_limit():
            image = Image.open(file, formats=PILLOW_FORMATS + tuple(_plugins or ()))
    except UnidentifiedImageError:
        if _plugins is not None or not _register_plugins():
            raise
        return open_with_pillow(file, max_pixels)
    check_size(*image.size, max_pixels)
    return image


@contextmanager
def own_limit() -> Iterator[None]:
    """Pillow's limit of pixels gives way to ours, in one thread at a time."""
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def check_size(width: int, height: int, max_pixels: int, channels: int = 3) -> None:
    """Refuses an image of more than `max_pixels` pixels; more than three channels count as thirds of a pixel.

    Raises:
        BrokenImage: it has more.
    """
    if width * height * max(channels, 3) > 3 * max_pixels:
        shape = f"{width:,} x {height:,}" + (f" x {channels}" if channels > 3 else "")
        raise BrokenImage(f"{shape} pixels are more than data.max_pixels={max_pixels}")


def _register_plugins() -> bool:
    """Registers the installed plug-ins with Pillow; whether there are any."""
    global _plugins
    _plugins = []
    for plugin in PLUGINS:
        if plugin.installed:
            module = importlib.import_module(plugin.module)
            register = getattr(module, "register_heif_opener", None)
            if register is not None:
                register()
            _plugins.append(plugin.format)
    return bool(_plugins)
