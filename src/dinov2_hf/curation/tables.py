"""Sharded parquet: written beside and renamed, so that what is there is whole.

An image of a collection has an `id`: shard and position in it, in one int64, so that ids ascend through the shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import beside

_POSITION_BITS = 32


def image_ids(shard: int, positions: np.ndarray) -> np.ndarray:
    """Ids `[n]` int64 of the images at `positions` of a shard."""
    return (np.int64(shard) << _POSITION_BITS) | np.asarray(positions, dtype=np.int64)


def shards_of(ids: np.ndarray) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64) >> _POSITION_BITS


def positions_of(ids: np.ndarray) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64) & ((1 << _POSITION_BITS) - 1)


def write_table(path: Path, columns: pa.Table | Mapping[str, Any]) -> None:
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    with beside(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)


def read_column(path: Path, column: str) -> np.ndarray:
    return read_table(path, [column])[column].to_numpy()


def num_rows(path: Path) -> int:
    return pq.read_metadata(path).num_rows


def write_json(path: Path, content: Any) -> None:
    with beside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_array(path: Path, array: np.ndarray) -> None:
    with beside(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def write_vectors(path: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    """Vectors `[n, D]` as float16 lists of one length, with their ids `[n]`."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1))
    write_table(path, {"id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[n]` and float16 vectors `[n, D]`."""
    table = read_table(path)
    width = table.schema.field("vector").type.list_size
    flat = pa.chunked_array([chunk.flatten() for chunk in table["vector"].chunks], pa.float16())
    return table["id"].to_numpy(), flat.to_numpy().reshape(-1, width)


class Vectors:
    """The rows of several shards of vectors, numbered through: those whose ids are in a second table, where one is.

    Args:
        files: for each shard its vectors, and a table with a column `id` of what is left of them.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]]) -> None:
        self._files = list(files)
        self._ends = np.cumsum([num_rows(kept) for _, kept in files], dtype=np.int64)

    def __len__(self) -> int:
        """Rows in all."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.shard(number) for number in range(len(self._files)))

    @property
    def width(self) -> int:
        return pq.read_schema(self._files[0][0]).field("vector").type.list_size

    def first_row(self, shard: int) -> int:
        return int(self._ends[shard - 1]) if shard else 0

    def ids(self, shard: int) -> np.ndarray:
        """`[n]` of the rows of a shard."""
        return read_column(self._files[shard][1], "id")

    def shard(self, shard: int) -> np.ndarray:
        """Float16 vectors `[n, D]` of the rows of a shard."""
        vectors, kept = self._files[shard]
        ids, rows = read_vectors(vectors)
        return rows if kept == vectors else rows[np.searchsorted(ids, read_column(kept, "id"))]

    def all_ids(self) -> np.ndarray:
        """`[N]`, a row each."""
        return np.concatenate([self.ids(shard) for shard in range(len(self._files))])
