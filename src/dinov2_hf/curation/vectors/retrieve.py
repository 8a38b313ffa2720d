"""Images of a pool that are close to a curated set (DINOv2, section 3 and appendix A.3)."""

from __future__ import annotations

import numpy as np

from .cluster import nearest_rows
from .sampling import waterfill


def retrieve_nearest(similarities: np.ndarray, rows: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The `num_neighbours` nearest rows of every query together: sorted rows `[n]`, and how often each was chosen.

    For large curated sets. The published numbers are 4, and 32 for ImageNet-1k; an image near several queries counts
    once for each.

    Args:
        similarities, rows: `[Q, k]` of `search`, `k >= num_neighbours`; row -1 is none. Columns in any order, as those
            of several indexes side by side (a row in two of them counts twice).
    """
    similarities, rows = np.asarray(similarities), np.asarray(rows)
    if similarities.shape != rows.shape or rows.ndim != 2:
        raise ValueError(f"similarities {similarities.shape} and rows {rows.shape} must be [queries, k] both")
    if not 1 <= num_neighbours <= rows.shape[1]:
        raise ValueError(f"num_neighbours={num_neighbours} must be 1 to {rows.shape[1]}, as many as were searched")
    order = np.lexsort((rows, -similarities), axis=1)[:, :num_neighbours]
    chosen = np.take_along_axis(rows, order, axis=1)
    return np.unique(chosen[chosen >= 0], return_counts=True)


def retrieve_clusters(
    assignments_pool: np.ndarray,
    assignments_queries: np.ndarray,
    distances: np.ndarray,
    per_cluster: int,
    min_queries: int = 3,
    cap: int | None = None,
) -> np.ndarray:
    """Sorted rows `[n]`: the `per_cluster` nearest to its centroid of each cluster that enough queries fall in.

    That is more than `min_queries`. For small curated sets; the published numbers: 100,000 clusters, 10,000 images of
    each with more than 3 queries, at most a million a set. Under the cap, clusters give equally many, as far as they
    have them.

    Args:
        assignments_pool: cluster of each row of the pool `[N]`.
        assignments_queries: cluster of each query `[Q]`.
        distances: `[N]` of the pool's rows to their centroids; equal ones are taken by row.
    """
    assignments_pool, assignments_queries = np.asarray(assignments_pool), np.asarray(assignments_queries)
    if np.shape(distances) != assignments_pool.shape:
        raise ValueError(f"distances {np.shape(distances)} for {len(assignments_pool)} rows of the pool")
    if per_cluster < 1 or min_queries < 0 or (cap is not None and cap < 0):
        raise ValueError(f"{per_cluster=} must be at least 1, {min_queries=} and {cap=} at least 0")
    num_clusters = 1 + max(assignments_pool.max(initial=-1), assignments_queries.max(initial=-1))
    queries = np.bincount(assignments_queries, minlength=num_clusters)
    quotas = np.minimum(np.bincount(assignments_pool, minlength=num_clusters), per_cluster)
    quotas[queries <= min_queries] = 0
    if cap is not None:
        quotas = waterfill(quotas, cap)
    return nearest_rows(assignments_pool, distances, quotas)
