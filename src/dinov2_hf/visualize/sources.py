"""Images that a person names: files, folders, and anything else that `datasets` reads."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..config import SourceConfig
from ..data.columns import open_images
from ..data.decode import BrokenImage
from ..features.extract import Images
from .pictures import Picture, open_picture

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class ImageFiles:
    """Files in the order given."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        told = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in self.paths]
        self.fingerprint: str | None = hashlib.sha256("\n".join(told).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of file `index`."""
        return self.paths[index].read_bytes(), self.paths[index].name


class ImageRows:
    """A set that `datasets` reads, labels or not."""

    def __init__(self, config: SourceConfig) -> None:
        self._images = open_images(config, streaming=False)
        self.fingerprint: str | None = self._images.dataset._fingerprint

    def __len__(self) -> int:
        return len(self._images.dataset)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of row `index`."""
        data, name = self._images.encoded(self._images.dataset[index][self._images.name], f"row {index}")
        return data, os.path.basename(name)


def open_collection(path: str, split: str = "train") -> Images:
    """The images at `path`: a file, a folder of image files at any depth in the order of their names, or a set.

    Args:
        split: of a set; files and folders of files have none.

    Raises:
        ValueError: nothing to read.
    """
    local = Path(path).expanduser()
    if local.is_file() and _is_image(local):
        return ImageFiles([local])
    if local.is_dir():
        files = sorted(file for file in local.rglob("*") if file.is_file() and _is_image(file))
        if files:
            return ImageFiles(files)
    if local.is_file() and local.suffix.lower() not in (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl"):
        return ImageFiles([local])  # is told to be no image when it is opened
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
) -> list[Picture]:
    """Images as `open_picture` gives them, of paths as `read_images` reads them."""

    def open(data: bytes, name: str) -> Picture:
        return open_picture(data, name, image_size, patch_size, num_channels)

    return read_images(paths, open, split, count)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in {*Image.registered_extensions(), ".npy"}
