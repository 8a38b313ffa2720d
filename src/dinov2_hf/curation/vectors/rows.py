"""Embeddings as rows: L2-normalised float16 matrices in shards, read by blocks, with products that no order can change.

`N` rows, `D` width, `Q` queries. Rows are numbered 0 .. N-1 through the shards in their global order.

Results of curation must not depend on the tasks, threads or blocks that computed them, and float32 sums do: their last
bits follow the order of summation. Float16 values are multiples of 2^-24, so that their products are multiples of
2^-48, and the partial sums over two unit vectors stay below 2: 50 bits, which float64 holds **without rounding**, in
any order. Searches therefore run in float32, and whatever a threshold or a tie hangs on is computed again here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

BLOCK = 16384
"""Rows of one block: 25 MB of float32 at width 384."""

LENGTH_TOLERANCE = 0.01
"""How far the length of a row may be from 1: rounding to float16 moves it by 0.001 at most."""


class VectorShards:
    """Matrices `[n, D]`, memory maps among them, one after another as one `[N, D]`.

    Read it by a slice or by an array of row numbers: both give a matrix in memory.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        if not shards or any(shard.ndim != 2 or shard.shape[1] != shards[0].shape[1] for shard in shards):
            raise ValueError(f"shards of shapes {[shard.shape for shard in shards]} are not matrices of one width")
        self._shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.shape = (int(self._ends[-1]), shards[0].shape[1])
        self.ndim, self.dtype = 2, shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        result = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        of_shard = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(of_shard):
            here = np.flatnonzero(of_shard == number)
            local = rows[here] - (self._ends[number] - len(self._shards[number]))
            contiguous = local[-1] - local[0] == len(local) - 1 and (np.diff(local) == 1).all()
            result[here] = self._shards[number][local[0] : local[-1] + 1] if contiguous else self._shards[number][local]
        return result


def as_rows(block: np.ndarray, first_row: int = 0, unit_length: bool = True) -> np.ndarray:
    """`[n, D]` rounded to float16, as contiguous float32 `[n, D]`: what every function here computes with.

    Raises:
        ValueError: not a matrix; a row that is not finite or longer than 1, or (unless `unit_length=False`) shorter.
            The message has its number, counted from `first_row`.
    """
    block = np.asarray(block)
    if block.ndim != 2:
        raise ValueError(f"vectors of shape {block.shape} are not a matrix [rows, width]")
    if block.dtype != np.float16:
        with np.errstate(over="ignore", invalid="ignore"):
            block = block.astype(np.float16)
    rows = np.ascontiguousarray(block, dtype=np.float32)
    squares = np.einsum("nd,nd->n", rows, rows)
    if not np.isfinite(squares).all():
        row = first_row + int(np.flatnonzero(~np.isfinite(squares))[0])
        raise ValueError(f"vector {row} is not finite; leave rows out whose image could not be embedded")
    lengths = np.sqrt(squares)
    wrong = (lengths > 1 + LENGTH_TOLERANCE) | (unit_length & (lengths < 1 - LENGTH_TOLERANCE))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"vector {first_row + row} has length {lengths[row]:.3g}, not 1; divide the rows by their length, and "
            "leave zero vectors out: they have no direction"
        )
    return rows


def blocks(vectors: np.ndarray | VectorShards, size: int = BLOCK, unit_length: bool = True) -> Iterator:
    """Yields `(first_row, float32 [n, D])` over all rows, `size` at a time, checked by `as_rows`."""
    for first_row in range(0, len(vectors), size):
        yield first_row, as_rows(vectors[first_row : first_row + size], first_row, unit_length)


def equal_blocks(matrices: Iterable[np.ndarray], size: int = BLOCK) -> Iterator:
    """As `blocks`, over matrices of any heights: the cuts do not depend on how the rows come in."""
    first_row, waiting, count = 0, [], 0
    for matrix in matrices:
        while len(matrix):
            waiting.append(matrix[: size - count])
            matrix = matrix[size - count :]
            count += len(waiting[-1])
            if count == size:
                yield first_row, as_rows(np.concatenate(waiting), first_row)
                first_row, waiting, count = first_row + size, [], 0
    if count:
        yield first_row, as_rows(np.concatenate(waiting), first_row)


def exact_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner products `[n]` float64, without rounding, of `left` and `right` `[n, D]` that hold float16 values."""
    return np.einsum("nd,nd->n", left, right, dtype=np.float64)


def faiss_module():
    """The module `faiss`, or an ImportError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError('curation needs faiss: pip install "dinov2_hf[curate]"') from error
    return faiss
