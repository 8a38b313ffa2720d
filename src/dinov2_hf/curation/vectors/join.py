"""Candidates above a threshold in an inverted index, list by list: one matrix product for all queries of a list.

faiss scans a list once for every query that looks into it, a few billion products a second and core; a matrix product
of all those queries with the list does about ten times as many. That pays where many queries come at once and few
rows are above the threshold: deduplication.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .rows import faiss_module

CANDIDATES = 1 << 23
"""Candidates held before those beyond the best of each query are dropped: 160 MB."""

PRODUCTS = 1 << 22
"""Cosines computed at once, which bounds memory where a list has very many rows."""


def candidates_above(
    index: Any, queries: np.ndarray, k: int, nprobe: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Query `[p]` and row `[p]` of pairs whose cosine may be above `threshold` (a float32 sum says so).

    At least the `k` nearest of each query `[Q, D]` float32 that are above it, in the `nprobe` lists nearest to it.
    """
    from faiss.contrib.inspect_tools import get_invlist

    assert isinstance(index, faiss_module().IndexIVFScalarQuantizer) and not index.by_residual
    nprobe = min(nprobe, index.nlist)
    lists = index.quantizer.search(queries, nprobe)[1].ravel()
    order = np.argsort(lists, kind="stable")
    numbers, starts = np.unique(lists[order], return_index=True)
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    size = 0
    for number, visits in zip(numbers, np.split(order, starts[1:])):
        rows, codes = get_invlist(index.invlists, int(number))
        if not len(rows):
            continue
        members = codes.view(np.float16).astype(np.float32).T
        for some in np.array_split(visits // nprobe, -(-len(visits) * len(rows) // PRODUCTS)):
            similarities = queries[some] @ members
            query, row = np.nonzero(similarities > threshold)
            found.append((some[query], rows[row], similarities[query, row]))
            size += len(query)
            if size > CANDIDATES:
                found = [_best(found, k)]
                size = len(found[0][0])
    return _best(found, k)[:2]


def _best(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` most similar candidates of each query, ties by row."""
    of_query, rows, similarities = (np.concatenate(parts) for parts in zip(*found))
    if not len(of_query) or np.bincount(of_query).max() <= k:
        return of_query, rows, similarities
    kept = ranked(of_query, rows, similarities, k)[2]
    return of_query[kept], rows[kept], similarities[kept]


def ranked(
    of_query: np.ndarray, rows: np.ndarray, similarities: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of candidates `[p]` the `k` best a query: `(query, rank, position among the candidates)`; ties by row."""
    order = np.lexsort((rows, -similarities, of_query))
    of_query = of_query[order]
    rank = np.arange(len(order)) - np.searchsorted(of_query, of_query)
    first = rank < k
    return of_query[first], rank[first], order[first]
