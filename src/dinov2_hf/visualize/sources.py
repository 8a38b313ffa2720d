"""Images that a person names: files, folders, and anything else that `datasets` reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..config import SourceConfig
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding
from ..data.sources import open_images
from ..features.extract import Images
from .pictures import Picture, open_picture

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class ImageRows:
    """The images of a source, labels or not."""

    def __init__(self, config: SourceConfig) -> None:
        self._images = open_images(config, streaming=False)

    @property
    def fingerprint(self) -> str | None:
        """Of the images and their order."""
        return self._images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of row `index`."""
        data, name = self._images.read(index)
        return data, os.path.basename(name)


def open_collection(path: str, split: str = "train") -> Images:
    """The images at `path`: a file, a folder, a pattern, or anything else that training reads, as it reads it.

    Raises:
        ValueError: nothing to read, or no such split.
    """
    return ImageRows(SourceConfig(path=path, split=split))


def read_images(paths: Sequence[str], open: Callable[[bytes, str], Item], split: str, count: int) -> list[Item]:
    """What `open` makes of the bytes and the name of images: of files that are named, and of up to `count` of each
    folder or set, evenly spaced.

    Raises:
        BrokenImage: a file that is named cannot be decoded. Those of a folder or set are left out and named in the log.
        ValueError: nothing to read, or none of a folder or set can be decoded.
    """
    opened = []
    for path in paths:
        images = open_collection(path, split)
        found = []
        for index in np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int):
            try:
                found.append(open(*images.read(int(index))))
            except BrokenImage as error:
                if len(images) == 1:
                    raise
                logger.warning("left out: %s", error)
        if not found:
            raise ValueError(f"{path} has no image that can be decoded among {min(count, len(images))}; give others")
        opened += found
    return opened


def open_pictures(
    paths: Sequence[str],
    image_size: int,
    patch_size: int = 1,
    num_channels: int = 3,
    split: str = "train",
    count: int = 8,
    decoding: Decoding = DEFAULT_DECODING,
) -> list[Picture]:
    """Images as `open_picture` gives them, of paths as `read_images` reads them."""

    def open(data: bytes, name: str) -> Picture:
        return open_picture(data, name, image_size, patch_size, num_channels, decoding)

    return read_images(paths, open, split, count)
