"""A searchable index of embeddings: inner products through faiss, similarities computed again without rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...files import beside
from .cluster import kmeans
from .join import ranked
from .rows import BLOCK, as_rows, equal_blocks, exact_products, faiss_module

FLAT_ROWS = 50_000
"""Up to this many rows a flat index is as fast as an inverted one, and finds everything."""

NPROBE = 16
"""Lists that a query looks into."""

QUERY_BATCH = 4096
SPARE = 8
"""Neighbours fetched beyond `k`, so that float32's last bits do not decide who is among the `k`."""


def build_index(
    vectors: Iterable[np.ndarray], dim: int, count: int, *, kind: str = "auto", num_lists: int = 0, seed: int = 0
) -> Any:
    """A faiss index of `count` rows for inner products; row numbers are the order in which the rows come.

    "flat" keeps float32 and compares with everything; "ivf" keeps float16 in `num_lists` lists around k-means
    centroids, of which a search looks into `nprobe` (`by_residual=False`: faiss is wrong for inner products in some of
    its paths otherwise). The result does not depend on how the rows are cut into matrices.

    Args:
        vectors: matrices `[n, dim]` of unit rows. They are read twice for "ivf": a list, or an object whose
            `__iter__` starts again; not a generator.
        kind: "flat", "ivf", or "auto": flat up to 50,000 rows.
        num_lists: lists of "ivf"; 0: `4 sqrt(count)`.

    Raises:
        ValueError: no rows, more or fewer than `count`, another width than `dim`, or rows that are not unit vectors.
    """
    faiss = faiss_module()
    if kind not in ("auto", "flat", "ivf"):
        raise ValueError(f"kind={kind!r} is not auto, flat or ivf")
    if count < 1:
        raise ValueError(f"an index of {count} vectors has nothing to search; is the stage before it empty?")
    if kind == "auto":
        kind = "flat" if count <= FLAT_ROWS else "ivf"
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    else:
        if iter(vectors) is vectors:
            raise ValueError("vectors can be read once only; ivf reads them twice: give a list or a re-iterable object")
        num_lists = num_lists or min(count, round(4 * count**0.5))
        if not 1 <= num_lists <= count:
            raise ValueError(f"num_lists={num_lists} of {count} vectors; use 1 to {count}, or 0 for 4 sqrt(count)")
        sample = _sample(vectors, dim, count, 32 * num_lists, seed)
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(kmeans(sample, num_lists, iterations=10, seed=seed).astype(np.float32))
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, num_lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        index.train(sample[:1].astype(np.float32))  # the centroids are there already, and float16 learns nothing
    for first_row, rows in _blocks_of_width(vectors, dim):
        if first_row + len(rows) > count:
            raise ValueError(f"more vectors came than count={count}")
        index.add(rows)
    if index.ntotal != count:
        raise ValueError(f"{index.ntotal} vectors came, not count={count}")
    if kind == "ivf":
        index.make_direct_map()  # where each row is, for its vector: 8 bytes a row
    return index


def save_index(index: Any, path: str | Path) -> None:
    """Writes the index whole or not at all, so that a killed run leaves no half of one."""
    with beside(Path(path)) as temporary:
        faiss_module().write_index(index, str(temporary))


def load_index(path: str | Path) -> Any:
    """The index of `save_index`; lists of an inverted one stay on disk, mapped, shared by the tasks of a machine."""
    faiss = faiss_module()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such index; run the stage that builds it")
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)


def search(index: Any, queries: np.ndarray, k: int, nprobe: int = NPROBE) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest rows of each query `[Q, D]`: similarities `[Q, k]` float32 and rows `[Q, k]` int64, best first.

    Similarities are exact and equal ones are in the order of rows, whatever the batch. Where fewer rows are found than
    `k`, -inf and -1 follow. `nprobe` counts for inverted indexes alone.
    """
    if k < 1 or nprobe < 1:
        raise ValueError(f"k={k} neighbours in nprobe={nprobe} lists; use at least 1 of both")
    similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    if hasattr(index, "nprobe"):
        index.nprobe = min(nprobe, index.nlist)
    for start, batch in checked_queries(index, queries, QUERY_BATCH):
        found = index.search(batch, min(k + SPARE, index.ntotal))[1]
        of_query, place = np.nonzero(found >= 0)
        found = found[of_query, place]
        exact = exact_similarities(index, batch, of_query, found)
        of_query, rank, kept = ranked(of_query, found, exact, k)
        similarities[start + of_query, rank] = exact[kept]
        rows[start + of_query, rank] = found[kept]
    return similarities, rows


def checked_queries(index: Any, queries: np.ndarray, size: int, first_row: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yields `(start, float32 [n, D])` of the queries, `size` at a time; `first_row` is for the messages."""
    if len(queries) and queries.shape[1] != index.d:
        raise ValueError(f"queries of width {queries.shape[1]} for an index of width {index.d}")
    for start in range(0, len(queries), size):
        yield start, as_rows(queries[start : start + size], first_row + start)


def exact_similarities(index: Any, queries: np.ndarray, of_query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosines `[p]` float64, without rounding, of pairs of a query and a row of the index."""
    exact = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        exact[part] = exact_products(index.reconstruct_batch(rows[part]), queries[of_query[part]])
    return exact


def _blocks_of_width(vectors: Iterable[np.ndarray], dim: int) -> Iterator[tuple[int, np.ndarray]]:
    for first_row, rows in equal_blocks(vectors):
        if rows.shape[1] != dim:
            raise ValueError(f"vectors of width {rows.shape[1]} for an index of width {dim}")
        yield first_row, rows


def _sample(vectors: Iterable[np.ndarray], dim: int, count: int, size: int, seed: int) -> np.ndarray:
    """`min(size, count)` rows `[n, D]` float16, drawn by the seed and in their order."""
    if size >= count:
        wanted = np.arange(count)
    else:
        wanted = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    parts, total = [], 0
    for first_row, rows in _blocks_of_width(vectors, dim):
        total += len(rows)
        here = wanted[np.searchsorted(wanted, first_row) : np.searchsorted(wanted, first_row + len(rows))]
        parts.append(rows[here - first_row].astype(np.float16))
    if total != count:
        raise ValueError(f"{total} vectors came, not count={count}")
    return np.concatenate(parts)
