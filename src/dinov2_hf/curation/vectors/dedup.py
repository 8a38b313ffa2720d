"""Duplicates as connected components of the neighbour graph (DINOv2, section 3 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .index import NPROBE, SPARE, checked_queries, exact_similarities
from .join import candidates_above, ranked

QUERIES = 1 << 17
"""Rows searched at once: 200 MB of float32 at width 384. The more, the more of them share a list of the index."""

PORTION = 1 << 25
"""Pairs that are merged at once."""

ROUNDING = 2.0**-22
"""More than a float32 sum of products of unit vectors can be wrong, for each of the products."""


def neighbour_pairs(
    index: Any, queries: np.ndarray, first_row: int, k: int = 64, threshold: float = 0.6, *, nprobe: int = NPROBE
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows `[p, 2]` int64, the smaller first, whose cosine is above `threshold`, and it `[p]` float32.

    `queries` `[n, D]` are the rows `first_row`, `first_row + 1`, … of the index: one task's block. Each pair comes
    once, in order, if either of the two is among the other's `k` nearest; a pair across two blocks may come from both.
    The published numbers are 64 neighbours and 0.6, or 0.45 against evaluation sets.

    Raises:
        ValueError: a threshold outside -1 to 1, or rows that the index has not.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} is no cosine; the paper's are 0.6 and 0.45")
    if k < 1 or nprobe < 1:
        raise ValueError(f"k={k} neighbours in nprobe={nprobe} lists; use at least 1, the paper's k is 64")
    if first_row < 0 or first_row + len(queries) > index.ntotal:
        raise ValueError(f"rows {first_row} to {first_row + len(queries) - 1} of an index of {index.ntotal}")
    pairs, similarities = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    for start, batch in checked_queries(index, queries, QUERIES, first_row):
        of_query, found = _candidates(index, batch, k + 1 + SPARE, nprobe, threshold - index.d * ROUNDING)
        exact = exact_similarities(index, batch, of_query, found)
        rows = first_row + start + of_query
        pair = (exact > threshold) & (found != rows)
        rows, found, exact = rows[pair], found[pair], exact[pair]
        kept = ranked(rows, found, exact, k)[2]
        pairs.append(np.sort(np.stack([rows[kept], found[kept]], axis=1), axis=1))
        similarities.append(exact[kept].astype(np.float32))
    both, first = np.unique(np.concatenate(pairs), axis=0, return_index=True)
    return both, np.concatenate(similarities)[first]


def _candidates(index: Any, queries: np.ndarray, k: int, nprobe: int, threshold: float) -> tuple:
    """Query and row of at least the `k` nearest above the threshold."""
    if hasattr(index, "nprobe"):
        return candidates_above(index, queries, k, nprobe, threshold)
    similarities, rows = index.search(queries, min(k, index.ntotal))
    of_query, place = np.nonzero(similarities > threshold)
    return of_query, rows[of_query, place]


def components(pairs: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The smallest row `[count]` int64 that each row is connected to by pairs `[p, 2]`; a row without any: itself.

    Pairs come in portions (a file at a time), in any order, with repeats or without. Memory: 24 bytes a row, and about
    100 for each of the 33 million pairs that small portions are joined to.
    """
    labels = np.arange(count)
    waiting, size = [], 0
    for portion in pairs:
        portion = np.asarray(portion, dtype=np.int64).reshape(-1, 2)
        if portion.size and (portion.min() < 0 or portion.max() >= count):
            wrong = portion.max() if portion.max() >= count else portion.min()
            raise ValueError(f"pair with row {wrong} of {count} rows; were the pairs made from another pool?")
        waiting.append(portion)
        size += len(portion)
        if size >= PORTION:
            labels = _merged(labels, np.concatenate(waiting))
            waiting, size = [], 0
    return _merged(labels, np.concatenate(waiting)) if size else labels


def self_dedup(labels: np.ndarray, keep: str | np.ndarray = "first") -> np.ndarray:
    """Which rows `[N]` bool to keep: one of each component.

    Args:
        labels: `[N]` of `components`.
        keep: "first", the smallest row, or a score of each row `[N]` (as pixels of its image), of which the highest
            is kept; of equal ones the smallest row.
    """
    labels = np.asarray(labels)
    if isinstance(keep, str):
        if keep != "first":
            raise ValueError(f'keep={keep!r} is not "first" or scores')
        return labels == np.arange(len(labels))
    scores = np.asarray(keep)
    if scores.shape != labels.shape:
        raise ValueError(f"scores of shape {scores.shape} for {len(labels)} rows")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise ValueError(f"the score of row {int(np.flatnonzero(np.isnan(scores))[0])} is not a number")
    sizes = np.bincount(labels, minlength=len(labels))
    mask = sizes[labels] == 1
    rows = np.flatnonzero(~mask)
    rank = np.unique(scores[rows], return_inverse=True)[1]  # to turn an order round without overflow
    order = rows[np.lexsort((rows, -rank, labels[rows]))]
    mask[order[np.flatnonzero(np.diff(labels[order], prepend=-1))]] = True
    return mask


def relative_dedup(labels: np.ndarray, count_pool: int) -> np.ndarray:
    """Which rows `[count_pool]` bool of a pool to keep: none that is connected to a reference image.

    Args:
        labels: `[count_pool + references]` of `components` over the pool's rows with the references behind them.
    """
    labels = np.asarray(labels)
    if not 0 <= count_pool <= len(labels):
        raise ValueError(f"count_pool={count_pool} of {len(labels)} labels of pool and references")
    tainted = np.zeros(len(labels), dtype=bool)
    tainted[labels[count_pool:]] = True
    return ~tainted[labels[:count_pool]]


def _merged(labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Labels after the components that the pairs connect became one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(labels[pairs], return_inverse=True)
    ends = ends.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), (len(nodes), len(nodes)))
    group = connected_components(graph, directed=False)[1]
    smallest = nodes[np.unique(group, return_index=True)[1]]  # nodes ascend: the first of a group is its smallest
    parent = np.arange(len(labels))
    parent[nodes] = smallest[group]
    return parent[labels]
