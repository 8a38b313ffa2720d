"""k-means that gives the same bits on any machine, and its hierarchy with resampling (Vo et al., 2024).

Distances are searched by faiss in float32; where the two nearest centroids are closer to each other than float32 can
tell, they are compared without rounding (see `rows.py`), and of equal ones the first is taken. Centroids are float16,
and sums of float16 rows are exact in float64: so neither threads nor blocks nor their order change a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .rows import BLOCK, VectorShards, as_rows, blocks, exact_products, faiss_module

Vectors = np.ndarray | VectorShards


def kmeans(
    vectors: Vectors,
    k: int,
    iterations: int = 20,
    seed: int = 0,
    *,
    spherical: bool = True,
    max_points_per_centroid: int = 256,
    progress: bool = False,
) -> np.ndarray:
    """Centroids `[k, D]` float16 of rows `[N, D]`, after Lloyd's iterations from the start of k-means++.

    Clusters that run empty start again from a random member of the largest ones. Stops early when nothing moves.

    Args:
        spherical: centroids have length 1, so that the nearest one is that of the largest cosine; else they are means.
        max_points_per_centroid: train on a sample of this many rows for each centroid, drawn by the seed.

    Raises:
        ValueError: fewer rows than `k`, or rows that are not finite.
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k={k} clusters of {len(vectors)} vectors; use 1 to {len(vectors)}")
    if iterations < 1 or max_points_per_centroid < 1:
        raise ValueError(f"{iterations=} and {max_points_per_centroid=} must be at least 1")
    rng = np.random.default_rng(seed)
    if len(vectors) > k * max_points_per_centroid:
        vectors = vectors[np.sort(rng.choice(len(vectors), k * max_points_per_centroid, replace=False))]
    centroids = _start(vectors, k, rng)
    before = None
    for _ in tqdm(range(iterations), desc=f"k-means, {k:,} clusters", disable=not progress):
        clusters, sums, counts = _step(vectors, centroids)
        if before is not None and np.array_equal(before, clusters):
            break
        before = clusters
        scale = np.linalg.norm(sums, axis=1) if spherical else counts
        filled = (counts > 0) & (scale > 0)  # opposite rows may cancel: such a centroid stays where it is
        centroids[filled] = (sums[filled] / scale[filled, None]).astype(np.float16)
        empty, largest = np.flatnonzero(counts == 0), np.argsort(-counts, kind="stable")
        if len(empty):
            largest = largest[: min(len(empty), (counts > 1).sum())]
            places = np.cumsum(counts)[largest] - 1 - rng.integers(counts[largest])
            members = np.argsort(clusters, kind="stable")[places]
            centroids[empty[: len(members)]] = as_rows(vectors[members], unit_length=False)
    return centroids.astype(np.float16)


def assign(
    vectors: Vectors, centroids: np.ndarray, *, progress: bool = False, block_size: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of centroids `[k, D]` for each row `[N, D]`: numbers `[N]` int64, squared distances `[N]` float32.

    Equal ones go to the first. The same for each row alone as for all together.
    """
    clusters = np.empty(len(vectors), dtype=np.int64)
    distances = np.empty(len(vectors), dtype=np.float32)
    nearest = _Nearest(as_rows(centroids, unit_length=False))
    for first_row, rows in tqdm(
        blocks(vectors, block_size, unit_length=False),
        desc=f"Assignment to {len(centroids):,} clusters",
        total=-(-len(vectors) // block_size),
        disable=not progress,
    ):
        part = slice(first_row, first_row + len(rows))
        clusters[part] = nearest(rows)
        distances[part] = nearest.distances(rows, clusters[part])
    return clusters, distances


@dataclass(frozen=True)
class Hierarchy:
    """Clusters of clusters, the finest level first.

    `centroids[t]` `[n_t, D]` float16; `parents[0]` `[N]` is the cluster of each row, `parents[t]` `[n_(t-1)]` that of
    each cluster of the level below.
    """

    centroids: list[np.ndarray]
    parents: list[np.ndarray]

    def clusters(self, level: int = -1) -> np.ndarray:
        """The cluster of each row `[N]` at a level; by default the coarsest."""
        result = self.parents[0]
        for parents in self.parents[1 : level % len(self.parents) + 1]:
            result = parents[result]
        return result


def hierarchical_kmeans(
    vectors: Vectors,
    sizes: Sequence[int],
    *,
    iterations: int = 20,
    resampling_steps: int = 10,
    seed: int = 0,
    max_points_per_centroid: int = 256,
    progress: bool = False,
) -> Hierarchy:
    """Clusters rows `[N, D]` into `sizes[0]` clusters, their centroids into `sizes[1]`, and so on.

    One k-means puts many centroids where many images are. Resampling flattens that: the rows nearest to each centroid,
    half the mean cluster size of them, are clustered anew, and all rows assigned to the result, `resampling_steps`
    times a level (Vo et al., section 3.3). The published run: 10M, 500k, 50k and 10k clusters, 10 steps.

    Raises:
        ValueError: sizes that do not fall, or more clusters than rows.
    """
    if not sizes or any(low >= high for high, low in zip([len(vectors) + 1, *sizes], [*sizes, 0])):
        raise ValueError(f"sizes={list(sizes)} must fall from level to level, from {len(vectors)} vectors at most to 1")
    points, hierarchy = vectors, Hierarchy([], [])
    seeds = iter(np.random.SeedSequence(seed).generate_state(len(sizes) * (resampling_steps + 1)).tolist())
    settings: dict[str, Any] = {
        "spherical": False,
        "max_points_per_centroid": max_points_per_centroid,
        "progress": progress,
    }
    for k in sizes:
        centroids = kmeans(points, k, iterations, next(seeds), **settings)
        clusters, distances = assign(points, centroids, progress=progress)
        nearest = max(1, len(points) // (2 * k))
        for _ in range(resampling_steps):
            rows = nearest_rows(clusters, distances, np.full(k, nearest))
            step_seed = next(seeds)
            if len(rows) < k:  # so many equal rows that clusters are empty: nothing to flatten
                continue
            if len(rows) > k * max_points_per_centroid:  # before they are read
                draw = np.random.default_rng(step_seed).choice(len(rows), k * max_points_per_centroid, replace=False)
                rows = rows[np.sort(draw)]
            centroids = kmeans(points[rows], k, iterations, step_seed, **settings)
            clusters, distances = assign(points, centroids, progress=progress)
        hierarchy.centroids.append(centroids)
        hierarchy.parents.append(clusters)
        points = centroids
    return hierarchy


def nearest_rows(clusters: np.ndarray, distances: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Of each cluster `c` the `quotas[c]` rows of the smallest distance, ties by row: sorted rows."""
    order = np.lexsort((distances, clusters))
    of_cluster = clusters[order]
    rank = np.arange(len(order)) - np.searchsorted(of_cluster, of_cluster)
    return np.sort(order[rank < quotas[of_cluster]])


class _Nearest:
    """The nearest of float32 centroids `[k, D]` that hold float16 values, exactly."""

    def __init__(self, centroids: np.ndarray) -> None:
        self._centroids = centroids
        self._index = faiss_module().IndexFlatL2(centroids.shape[1])
        self._index.add(centroids)
        self._squares = exact_products(centroids, centroids)
        self._rounding = centroids.shape[1] * 2.0**-21  # more than two float32 distances can be wrong

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Numbers `[n]` of the centroids."""
        distances, found = self._index.search(rows, min(2, len(self._centroids)))
        nearest = found[:, 0]
        if found.shape[1] == 2:
            doubtful = np.flatnonzero(distances[:, 1] - distances[:, 0] <= self._rounding)
            nearest[doubtful] = self._compare(rows[doubtful].astype(np.float64))
        return nearest

    def _compare(self, rows: np.ndarray) -> np.ndarray:
        """`x·c - c·c / 2` is largest where the distance is smallest; `argmax` takes the first of equal ones."""
        best, nearest = np.full(len(rows), -np.inf), np.zeros(len(rows), dtype=np.int64)
        for start in range(0, len(self._centroids), 4096):
            part = slice(start, start + 4096)
            scores = rows @ self._centroids[part].astype(np.float64).T - self._squares[part] / 2
            here = scores.argmax(axis=1)
            score = scores[np.arange(len(rows)), here]
            better = score > best
            best[better], nearest[better] = score[better], start + here[better]
        return nearest

    def distances(self, rows: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Squared distances `[n]` float64 to the centroids of those numbers."""
        products = exact_products(rows, self._centroids[clusters])
        return exact_products(rows, rows) - 2 * products + self._squares[clusters]


def _start(vectors: Vectors, k: int, rng: np.random.Generator) -> np.ndarray:
    """`k` rows `[k, D]` float32, each drawn in proportion to its squared distance to those drawn before.

    As in k-means++ (Arthur and Vassilvitskii, 2007), but a fifth of the rows so far at once, and among 16 rows for each
    centroid. Where no row is left at a distance, rows repeat.
    """
    pool = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), 16 * k), replace=False))]
    chosen = as_rows(pool[rng.integers(len(pool), size=1)], unit_length=False)
    last, distances = chosen, np.full(len(pool), np.inf)
    while len(chosen) < k:
        nearest = _Nearest(last)
        for first_row, rows in blocks(pool, unit_length=False):
            part = slice(first_row, first_row + len(rows))
            distances[part] = np.minimum(distances[part], nearest.distances(rows, nearest(rows)))
        size = min(k - len(chosen), max(1, len(chosen) // 4), int(np.count_nonzero(distances)))
        if size == 0:
            return np.concatenate([chosen, np.repeat(chosen[:1], k - len(chosen), axis=0)])
        last = as_rows(
            pool[rng.choice(len(pool), size, replace=False, p=distances / distances.sum())], unit_length=False
        )
        chosen = np.concatenate([chosen, last])
    return chosen


def _step(vectors: Vectors, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters `[N]`, sums `[k, D]` float64 of their rows, without rounding, and their sizes `[k]`."""
    from scipy.sparse import csr_matrix

    nearest = _Nearest(centroids)
    clusters = np.empty(len(vectors), dtype=np.int64)
    sums = np.zeros(centroids.shape)
    for first_row, rows in blocks(vectors, unit_length=False):
        here = nearest(rows)
        clusters[first_row : first_row + len(rows)] = here
        touched, local = np.unique(here, return_inverse=True)
        members = csr_matrix((np.ones(len(rows)), (local, np.arange(len(rows)))), (len(touched), len(rows)))
        sums[touched] += members @ rows.astype(np.float64)
    return clusters, sums, np.bincount(clusters, minlength=len(centroids))
