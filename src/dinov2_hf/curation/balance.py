"""Sixth stage, without seed sets: equal shares of clusters of clusters (Vo et al., 2024)."""

from __future__ import annotations

import numpy as np

from .embed import EmbedStage
from .groups import count_kept
from .stage import Context, Stage, vectors_of
from .tables import write_array, write_table
from .vectors import VectorShards, balanced_sample, hierarchical_kmeans

_PUBLISHED_POOL, _PUBLISHED_SIZES = 743_000_000, (10_000_000, 500_000, 50_000, 10_000)


class BalanceStage(Stage):
    """Chooses `balance.target` images so that clusters, at every level, give equally many.

    Args:
        kept: what is left of the pool.
        embedded: the pool's vectors.
    """

    def __init__(self, context: Context, kept: Stage, embedded: EmbedStage) -> None:
        super().__init__("balance", context, list({stage.name: stage for stage in (kept, embedded)}.values()))
        self._kept, self._embedded = kept, embedded

    @property
    def settings(self) -> dict:
        return vars(self.context.config.balance) | {"seed": self.context.config.seed}

    def steps(self) -> dict[str, int]:
        return {"rows": len(self.context.pool), "select": 1}

    def do(self, step: str, unit: int) -> None:
        vectors, config = vectors_of(self._embedded, self._kept), self.context.config
        if step == "rows":
            write_array(self._rows(unit), vectors.shard(unit))
            return
        shards = VectorShards([np.load(self._rows(number), mmap_mode="r") for number in range(len(self.context.pool))])
        sizes = config.balance.sizes or automatic_sizes(len(shards))
        if sizes[0] > len(shards):
            raise ValueError(
                f"balance.sizes={list(sizes)} of {len(shards)} images that are left; use none, for "
                f"{automatic_sizes(len(shards))}"
            )
        hierarchy = hierarchical_kmeans(
            shards,
            sizes,
            iterations=config.balance.iterations,
            resampling_steps=config.balance.resampling_steps,
            seed=config.seed,
        )
        chosen = np.zeros(len(shards), dtype=bool)
        chosen[balanced_sample(hierarchy, config.balance.target, config.seed)] = True
        clusters = hierarchy.clusters(0)
        for number in range(len(self.context.pool)):
            own = slice(vectors.first_row(number), vectors.first_row(number + 1))
            ids, mask = vectors.ids(number), chosen[own]
            write_table(self.clustered(number), {"id": ids, "cluster": clusters[own]})
            write_table(self.part(number), {"id": ids[mask], "cluster": clusters[own][mask]})

    def clustered(self, unit: int):
        """Table of the finest cluster of every image that was left before."""
        return self.folder / "clusters" / f"{unit:05d}.parquet"

    def summary(self) -> dict:
        return {"kept": count_kept(self)}

    def _rows(self, unit: int):
        return self.folder / "rows" / f"{unit:05d}.npy"


def automatic_sizes(count: int) -> list[int]:
    """Clusters of each level for `count` images, in the proportion that was published; at least one level."""
    sizes = [round(size * count / _PUBLISHED_POOL) for size in _PUBLISHED_SIZES]
    return [size for size in sizes if size > 1] or [max(min(count, 2), 1)]
