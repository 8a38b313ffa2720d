"""Fourth and fifth stage: near duplicates by features, among the pool and of evaluation sets (appendix A.3)."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from .embed import EmbedStage
from .filter import FilterStage
from .groups import count_kept, pixel_counts, write_groups, write_kept
from .stage import Context, Stage, vectors_of
from .tables import Vectors, read_column, read_table, write_table
from .vectors import build_index, components, load_index, neighbour_pairs, relative_dedup, save_index, self_dedup


class _PairsStage(Stage):
    """An index of vectors, the pairs of near rows of every shard of them, and what follows from the components."""

    threshold_name: str

    @property
    def settings(self) -> dict:
        config = self.context.config
        names = ("num_neighbours", self.threshold_name)
        return {name: getattr(config.dedup, name) for name in names} | vars(config.search) | {"seed": config.seed}

    @property
    def threshold(self) -> float:
        return getattr(self.context.config.dedup, self.threshold_name)

    @abstractmethod
    def vectors(self) -> Vectors:
        """The vectors that are compared, shard by shard."""

    @abstractmethod
    def num_shards(self) -> int:
        """How many shards of vectors there are."""

    @abstractmethod
    def group(self) -> None:
        """Leaves what follows from the components."""

    def steps(self) -> dict[str, int]:
        return {"index": 1, "pairs": self.num_shards(), "groups": 1}

    def do(self, step: str, unit: int) -> None:
        if step == "index":
            index_vectors(self, self.vectors())
        elif step == "groups":
            self.group()
        else:
            vectors, config = self.vectors(), self.context.config
            pairs, similarities = neighbour_pairs(
                load_index(index_path(self)),
                vectors.shard(unit),
                vectors.first_row(unit),
                config.dedup.num_neighbours,
                self.threshold,
                nprobe=config.search.num_probes,
            )
            columns = {"first": pairs[:, 0], "second": pairs[:, 1], "similarity": similarities}
            write_table(self._pairs(unit), columns)

    def labels(self, count: int) -> np.ndarray:
        """The component of each row."""
        files = (read_table(self._pairs(unit), ["first", "second"]) for unit in range(self.num_shards()))
        return components((np.stack([table["first"], table["second"]], axis=1) for table in files), count)

    def _pairs(self, unit: int) -> Path:
        return self.folder / "pairs" / f"{unit:05d}.parquet"


class DedupStage(_PairsStage):
    """Of each component of the pool the image of most pixels is kept, of equal ones the first."""

    threshold_name = "threshold"

    def __init__(self, context: Context, filtered: FilterStage, embedded: EmbedStage) -> None:
        super().__init__("dedup", context, [embedded])
        self._filtered, self._embedded = filtered, embedded

    def vectors(self) -> Vectors:
        return vectors_of(self._embedded)

    def num_shards(self) -> int:
        return len(self.context.pool)

    def group(self) -> None:
        files = [self._embedded.part(number) for number in range(self.num_shards())]
        ids = [read_column(file, "id") for file in files]
        every = np.concatenate(ids)
        labels = self.labels(len(every))
        keep = self_dedup(labels, pixel_counts(self._filtered, files))
        write_groups(self.folder / "groups.parquet", labels, every, keep)
        write_kept(self, ids, keep)

    def summary(self) -> dict:
        groups = read_table(self.folder / "groups.parquet", ["group"])
        return {"kept": count_kept(self), "groups": len(np.unique(groups["group"]))}


class RelativeStage(_PairsStage):
    """Drops every component of the pool that holds an image of an evaluation set."""

    threshold_name = "relative_threshold"

    def __init__(
        self, context: Context, deduplicated: Stage, embedded: EmbedStage, evaluations: list[EmbedStage]
    ) -> None:
        super().__init__("relative", context, [deduplicated, *evaluations])
        self._kept, self._embedded, self._evaluations = deduplicated, embedded, evaluations

    def vectors(self) -> Vectors:
        files = [(self._embedded.part(number), self._kept.part(number)) for number in range(len(self.context.pool))]
        for stage in self._evaluations:
            files += [(stage.part(number), stage.part(number)) for number in range(stage.steps()["embed"])]
        return Vectors(files)

    def num_shards(self) -> int:
        return len(self.context.pool) + sum(stage.steps()["embed"] for stage in self._evaluations)

    def group(self) -> None:
        ids = [read_column(self._kept.part(number), "id") for number in range(len(self.context.pool))]
        count = sum(map(len, ids))
        write_kept(self, ids, relative_dedup(self.labels(len(self.vectors())), count))

    def summary(self) -> dict:
        kept = count_kept(self)
        if not kept:
            raise ValueError(
                f"every image of the pool is like one of the evaluation sets at dedup.relative_threshold="
                f"{self.threshold}; unrelated images are more alike than that by this model: raise it after a look at "
                "the similarities, or take another embed.model"
            )
        return {"kept": kept}


def index_path(stage: Stage) -> Path:
    return stage.folder / "vectors.faiss"


def index_vectors(stage: Stage, vectors: Vectors) -> None:
    """Builds the index of a stage.

    Raises:
        ValueError: no vectors, or of two widths.
    """
    config = stage.context.config.search
    if config.num_lists > len(vectors):
        raise ValueError(f"search.num_lists={config.num_lists} of {len(vectors)} images; use 0 for automatic")
    index = build_index(
        vectors,
        vectors.width,
        len(vectors),
        kind=config.index,
        num_lists=config.num_lists,
        seed=stage.context.config.seed,
    )
    save_index(index, index_path(stage))
