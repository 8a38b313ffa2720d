"""Sixth stage, with seed sets: images of the pool that are like theirs (section 3 and appendix A.4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from .dedup import index_path, index_vectors
from .embed import EmbedStage
from .groups import count_kept
from .stage import Context, Stage, vectors_of
from .tables import Vectors, read_table, write_array, write_table
from .vectors import VectorShards, assign, kmeans, load_index, retrieve_clusters, retrieve_nearest, search


class RetrieveStage(Stage):
    """For every seed set the nearest images of each query, or images of the clusters that its queries fall in.

    Args:
        kept: what is left of the pool.
        embedded: the pool's vectors.
        seeds: by name.
    """

    def __init__(self, context: Context, kept: Stage, embedded: EmbedStage, seeds: dict[str, EmbedStage]) -> None:
        super().__init__("retrieve", context, list({stage.name: stage for stage in (kept, embedded)}.values()))
        self.after += seeds.values()
        self._kept, self._embedded, self.seeds = kept, embedded, seeds
        config = context.config
        self.methods = {name: self._method(name) for name in seeds}
        self.neighbours = {name: config.seeds[name].num_neighbours for name in self.named("nearest")}

    def named(self, method: str) -> list[str]:
        """The seed sets of a method."""
        return [name for name, own in self.methods.items() if own == method]

    @property
    def settings(self) -> dict:
        config = self.context.config
        own = {"methods": self.methods, "neighbours": self.neighbours, "seed": config.seed}
        if self.neighbours:
            own |= vars(config.search)
        if self.named("clusters"):
            own |= {name: value for name, value in vars(config.retrieve).items() if name != "large_seed"}
        return own

    def steps(self) -> dict[str, int]:
        near = sum(self.seeds[name].steps()["embed"] for name in self.named("nearest"))
        clustered = sum(self.seeds[name].steps()["embed"] for name in self.named("clusters"))
        steps = {"index": 1, "nearest": near} if near else {}
        if clustered:
            steps |= {"rows": len(self.context.pool), "clusters": 1, "assign": len(self.context.pool) + clustered}
        return steps | {"select": 1}

    def do(self, step: str, unit: int) -> None:
        config = self.context.config
        if step == "index":
            index_vectors(self, self.vectors())
        elif step == "nearest":
            name, number = self._shards("nearest")[unit]
            vectors = vectors_of(self.seeds[name])
            similarities, rows = search(
                load_index(index_path(self)), vectors.shard(number), self.neighbours[name], config.search.num_probes
            )
            columns = {"query": vectors.ids(number), "row": list(rows), "similarity": list(similarities)}
            types = {"query": pa.int64(), "row": pa.list_(pa.int64()), "similarity": pa.list_(pa.float32())}
            write_table(self.found(name, number), pa.table(columns, schema=pa.schema(types)))
        elif step == "rows":
            write_array(self._rows(unit), self.vectors().shard(unit))
        elif step == "clusters":
            pool = VectorShards([np.load(self._rows(unit), mmap_mode="r") for unit in range(len(self.context.pool))])
            if config.retrieve.num_clusters > len(pool):
                raise ValueError(
                    f"retrieve.num_clusters={config.retrieve.num_clusters} of {len(pool)} images that are left; use "
                    f"{max(len(pool) // 100, 1)} or so, or seeds.*.method=nearest"
                )
            write_array(
                self.centroids, kmeans(pool, config.retrieve.num_clusters, config.retrieve.iterations, config.seed)
            )
        elif step == "assign":
            num_units, centroids = len(self.context.pool), np.load(self.centroids)
            if unit < num_units:
                rows, path = np.load(self._rows(unit)), self.assigned(None, unit)
            else:
                name, number = self._shards("clusters")[unit - num_units]
                rows, path = vectors_of(self.seeds[name]).shard(number), self.assigned(name, number)
            clusters, distances = assign(rows, centroids)
            write_table(path, {"cluster": clusters, "distance": distances})
        else:
            self._select()

    def vectors(self) -> Vectors:
        """Of what is left of the pool."""
        return vectors_of(self._embedded, self._kept)

    def found(self, name: str, unit: int) -> Path:
        """Table of the nearest `row`s of each `query` (an id), and their similarities."""
        return self.folder / "nearest" / name / f"{unit:05d}.parquet"

    def assigned(self, name: str | None, unit: int) -> Path:
        """Table of clusters and distances of a seed set's shard, or of the pool's (None)."""
        return self.folder / "assigned" / (f"seeds.{name}" if name else "pool") / f"{unit:05d}.parquet"

    @property
    def centroids(self) -> Path:
        return self.folder / "centroids.npy"

    def summary(self) -> dict:
        chosen = read_table(self.folder / "chosen.parquet")
        kept, counts = count_kept(self), chosen["repeats"].to_numpy()
        if not kept:
            raise ValueError(
                "nothing was retrieved: no cluster of the pool has more than retrieve.min_queries="
                f"{self.context.config.retrieve.min_queries} queries; use fewer clusters, or seeds.*.method=nearest"
            )
        of_seed = np.array(chosen["seed"].to_pylist())
        seeds = {
            name: {"images": int((of_seed == name).sum()), "with_repeats": int(counts[of_seed == name].sum())}
            for name in self.seeds
        }
        return {"kept": kept, "with_repeats": int(counts.sum()), "seeds": seeds}

    def _select(self) -> None:
        """Adds up what all seed sets chose."""
        config, vectors = self.context.config.retrieve, self.vectors()
        total = np.zeros(len(vectors), dtype=np.int32)
        chosen = []
        for name in self.seeds:
            if self.methods[name] == "nearest":
                tables = list(self._tables("nearest", name))
                count = self.neighbours[name]
                similarities, rows = (
                    np.concatenate([_matrix(table[column], count) for table in tables])
                    for column in ("similarity", "row")
                )
                rows, counts = retrieve_nearest(similarities, rows, count)
            else:
                pool = [read_table(self.assigned(None, unit)) for unit in range(len(self.context.pool))]
                clusters, distances = (np.concatenate([table[c] for table in pool]) for c in ("cluster", "distance"))
                queries = np.concatenate([table["cluster"] for table in self._tables("clusters", name)])
                rows = retrieve_clusters(
                    clusters, queries, distances, config.per_cluster, config.min_queries, config.cap
                )
                counts = np.ones(len(rows), dtype=np.int64)
            total[rows] += counts.astype(np.int32)
            chosen.append(pa.table({"seed": pa.array([name] * len(rows), pa.string()), "row": rows, "repeats": counts}))
        write_table(self.folder / "chosen.parquet", pa.concat_tables(chosen))
        for unit in range(len(self.context.pool)):
            own = slice(vectors.first_row(unit), vectors.first_row(unit + 1))
            ids, repeats = vectors.ids(unit), total[own]
            write_table(self.part(unit), {"id": ids[repeats > 0], "repeats": repeats[repeats > 0]})

    def _tables(self, method: str, name: str) -> Iterator[pa.Table]:
        path = self.found if method == "nearest" else self.assigned
        return (read_table(path(name, unit)) for unit in range(self.seeds[name].steps()["embed"]))

    def _shards(self, method: str) -> list[tuple[str, int]]:
        return [(name, unit) for name in self.named(method) for unit in range(self.seeds[name].steps()["embed"])]

    def _rows(self, unit: int) -> Path:
        return self.folder / "rows" / f"{unit:05d}.npy"

    def _method(self, name: str) -> str:
        config = self.context.config
        if (method := config.seeds[name].method) != "auto":
            return method
        count = self.seeds[name].context.collections[f"seeds.{name}"].count
        if count is None:
            raise ValueError(
                f"seeds.{name} is streamed, so that its size is not known; say seeds.{name}.method=nearest or clusters"
            )
        return "nearest" if count > config.retrieve.large_seed else "clusters"


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of lists of `width` numbers as `[n, width]`."""
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return flat.to_numpy().reshape(-1, width)
