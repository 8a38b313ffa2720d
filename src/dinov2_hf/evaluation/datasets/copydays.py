"""Copydays (Douze et al., 2009) in the folders that it is published in."""

from __future__ import annotations

import os
from pathlib import Path

from ...data.formats import READABLE
from .files import FileImages

_KEY = 4
"""Letters of a name that a copy shares with its original: `200001.jpg` is a copy of `200000.jpg`."""


class Copydays:
    """A folder with `original`, and with `strong`, `jpegqual/3`, …, `crops/10`, … as far as they are asked for.

    Args:
        path: of the folder.

    Raises:
        FileNotFoundError: no such folder, or none of originals in it.
        ValueError: originals whose names begin alike.
    """

    def __init__(self, path: str) -> None:
        self._root = Path(os.path.expanduser(path))
        self.originals = self._images("original")
        keys = [_key(file) for file in self.originals.files]
        self._originals = {key: row for row, key in enumerate(keys)}
        if len(self._originals) < len(keys):
            raise ValueError(
                f"originals in {self._root / 'original'} have names that begin with the same {_KEY} letters; unpack "
                "the published archive again"
            )

    def copies(self, subset: str) -> tuple[FileImages, list[list[int]]]:
        """The copies of a subset such as `strong`, and for each the row of its original; none where it is not there.

        Raises:
            FileNotFoundError: no folder of that subset, or no images in it.
        """
        images = self._images(subset)
        rows = [self._originals.get(_key(file)) for file in images.files]
        return images, [[] if row is None else [row] for row in rows]

    def _images(self, name: str) -> FileImages:
        folder = self._root / name
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        files = [file for file in found if file.suffix.lower() in READABLE and file.is_file()]
        if not files:
            raise FileNotFoundError(
                f"{folder} has no images; give the folder in which the archives of Copydays are unpacked, with "
                "original, strong, jpegqual and crops"
            )
        return FileImages(files, str(folder))


def _key(file: Path) -> str:
    return file.name[:_KEY]
