"""Equal shares of clusters: a balanced sample of a pool without labels (Vo et al., 2024, section 3.4)."""

from __future__ import annotations

import numpy as np

from .cluster import Hierarchy


def waterfill(sizes: np.ndarray, target: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Shares `[n]` int64 that add up to `target` and are as equal as `sizes` `[n]` let them; all if `target` is more.

    What cannot be divided goes to clusters drawn by `rng`, or to the first ones.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if target < 0 or (sizes < 0).any():
        raise ValueError(f"{target=} and all sizes must be at least 0")
    if target >= sizes.sum():
        return sizes.copy()
    ascending = np.sort(sizes)
    below = np.cumsum(ascending) - ascending
    at_level = below + ascending * np.arange(len(sizes), 0, -1)  # the sum of min(size, level) at each size as level
    full = int(np.searchsorted(at_level, target, side="right"))
    level = (target - int(below[full])) // (len(sizes) - full)
    shares = np.minimum(sizes, level)
    more = np.flatnonzero(sizes > level)
    rest = target - int(shares.sum())
    shares[more[:rest] if rng is None else rng.choice(more, rest, replace=False)] += 1
    return shares


def balanced_sample(hierarchy: Hierarchy, target: int, seed: int = 0) -> np.ndarray:
    """`target` sorted rows `[target]` (all, if there are not more), shared out from the coarsest level down.

    Each cluster gets as much as its siblings, or all that it has; at the finest level rows are drawn at random.
    """
    if target < 0:
        raise ValueError(f"target={target} images; use at least 1")
    rng = np.random.default_rng(seed)
    sizes = [np.bincount(hierarchy.parents[0], minlength=len(hierarchy.centroids[0]))]
    for parents, centroids in zip(hierarchy.parents[1:], hierarchy.centroids[1:]):
        sizes.append(np.bincount(parents, weights=sizes[-1], minlength=len(centroids)).astype(np.int64))
    shares = waterfill(sizes[-1], target, rng)
    for parents, own in zip(hierarchy.parents[:0:-1], sizes[-2::-1]):
        shares = _shares_of_children(parents, own, shares, rng)
    clusters = hierarchy.parents[0]
    order = np.lexsort((rng.random(len(clusters)), clusters))
    of_cluster = clusters[order]
    rank = np.arange(len(order)) - np.searchsorted(of_cluster, of_cluster)
    return np.sort(order[rank < shares[of_cluster]])


def _shares_of_children(
    parents: np.ndarray, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Shares of the clusters `[n]` whose `parents` have `shares` `[m]`."""
    result = np.zeros_like(sizes)
    order = np.argsort(parents, kind="stable")
    ends = np.cumsum(np.bincount(parents, minlength=len(shares)))
    for parent in np.flatnonzero(shares):
        children = order[(ends[parent - 1] if parent else 0) : ends[parent]]
        result[children] = waterfill(sizes[children], int(shares[parent]), rng)
    return result
