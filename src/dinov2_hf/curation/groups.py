"""Duplicate groups of either kind: their rows, which of them stays, and the tables that say so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .stage import Stage
from .tables import num_rows, read_table, write_table


def pixel_counts(filtered: Stage, kept: Iterable[Path]) -> np.ndarray:
    """Pixels `[N]` of the images in the tables `kept`, one for each shard of the pool."""
    counts = []
    for number, path in enumerate(kept):
        sizes = read_table(filtered.part(number), ["id", "width", "height"])
        pixels = sizes["width"].to_numpy().astype(np.int64) * sizes["height"].to_numpy()
        ids = read_table(path, ["id"])["id"].to_numpy()
        counts.append(pixels[np.searchsorted(sizes["id"].to_numpy(), ids)])
    return np.concatenate(counts)


def write_kept(stage: Stage, ids: Iterable[np.ndarray], mask: np.ndarray) -> None:
    """The table of each shard of the pool, of its `ids` those that the mask `[N]` over all of them keeps."""
    row = 0
    for number, own in enumerate(ids):
        write_table(stage.part(number), {"id": own[mask[row : row + len(own)]]})
        row += len(own)
    assert row == len(mask), (row, len(mask))


def write_groups(path: Path, labels: np.ndarray, ids: np.ndarray, keep: np.ndarray) -> None:
    """The members of every component of more than one row: its label, their ids, which of them are kept."""
    rows = np.flatnonzero(np.bincount(labels, minlength=len(labels))[labels] > 1)
    rows = rows[np.lexsort((rows, labels[rows]))]
    write_table(path, {"group": labels[rows], "id": ids[rows], "kept": keep[rows]})


def count_kept(stage: Stage) -> int:
    """Images that are left after a stage."""
    return sum(num_rows(stage.part(number)) for number in range(len(stage.context.pool)))
