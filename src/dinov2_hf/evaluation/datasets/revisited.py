"""Revisited Oxford and Paris (Radenovic et al., 2018) in the folders that they are published in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...files import first_line, lies_in
from .files import FileImages
from .plain_pickle import Array, load_plain

_PARTS = ("easy", "hard", "junk")


class Revisited:
    """A folder such as `roxford5k`, with the ground truth in `gnd_roxford5k.pkl` and the images in `jpg`.

    Args:
        path: of the folder.

    Raises:
        FileNotFoundError: no ground truth there, or an image that it names is missing.
        ValueError: ground truth that is damaged, or holds anything but names, numbers and boxes.
    """

    def __init__(self, path: str) -> None:
        root = Path(os.path.expanduser(path))
        truths = sorted(root.glob("gnd_*.pkl")) if root.is_dir() else []
        if len(truths) != 1:
            found = ", ".join(file.name for file in truths) or "none"
            raise FileNotFoundError(
                f"{root} must have one ground truth, such as gnd_roxford5k.pkl, and has {found}; give the folder "
                "roxford5k or rparis6k"
            )
        self.where, self._file, self._folder = str(root), truths[0], root / "jpg"
        try:
            truth = load_plain(self._file)
            names, queries, rows = truth["imlist"], truth["qimlist"], truth["gnd"]
            self.database = FileImages([self._image(name) for name in _texts(names)], f"{root} (database)")
            self.queries = FileImages([self._image(name) for name in _texts(queries)], f"{root} (queries)")
            if not isinstance(rows, list) or len(rows) != len(self.queries):
                raise ValueError("it has not as many entries in gnd as in qimlist")
            self.boxes = np.array([_box(row["bbx"]) for row in rows])
            """`[Q, 4]`: left, top, right, bottom in pixels."""
            self.rows = {part: [self._rows(row[part]) for row in rows] for part in _PARTS}
            """Of each query: the rows of the database that are `easy`, `hard` and `junk`."""
        except FileNotFoundError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
            raise ValueError(
                f"{self._file} is not the ground truth of a revisited set: {said}; fetch it again"
            ) from None

    def _image(self, name: str) -> Path:
        if not lies_in(self._folder, f"{name}.jpg"):
            raise ValueError(f"it names {name!r}, which lies outside of jpg")
        file = self._folder / f"{name}.jpg"
        if not file.is_file():
            raise FileNotFoundError(f"{self._file} names {name}, and {file} does not exist; unpack the images to jpg")
        return file

    def _rows(self, value: Any) -> list[int]:
        rows = value.values if isinstance(value, Array) else value
        if not isinstance(rows, (list, tuple)) or not all(type(row) is int for row in rows):
            raise ValueError(f"{rows!r} is not a list of row numbers")
        if wrong := [row for row in rows if not 0 <= row < len(self.database)]:
            raise ValueError(f"it names row {wrong[0]} of {len(self.database)} images")
        return sorted(set(rows))


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("its list of images is not a list of names")
    return value


def _box(value: Any) -> list[float]:
    box = value.values if isinstance(value, Array) else value
    good = isinstance(box, (list, tuple)) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not good or not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"{box!r} is not a box [left, top, right, bottom]")
    return [float(side) for side in box]
