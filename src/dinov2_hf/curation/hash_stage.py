"""Second stage: one of each group of images whose bytes or perceptual hashes are equal or nearly so."""

from __future__ import annotations

import numpy as np

from .filter import FilterStage
from .groups import count_kept, pixel_counts, write_groups, write_kept
from .hashes import equal_pairs, near_pairs
from .stage import Context, Stage
from .tables import read_column, read_table, write_table
from .vectors import components, self_dedup


class HashesStage(Stage):
    """Keeps the image of most pixels of each component, of equal ones the first."""

    def __init__(self, context: Context, filtered: FilterStage) -> None:
        super().__init__("hashes", context, [filtered])
        self._filtered = filtered

    @property
    def settings(self) -> dict:
        return vars(self.context.config.hashes)

    def steps(self) -> dict[str, int]:
        """`pairs` has a unit for equal bytes, one for equal hashes, and one for each band of bits."""
        distance = self.context.config.hashes.max_distance
        return {"pairs": 1 if distance < 0 else 2 if distance == 0 else 3 + distance, "groups": 1}

    def do(self, step: str, unit: int) -> None:
        if step == "groups":
            self._group()
            return
        hashes = self._column("bytes_hash" if unit == 0 else "perceptual_hash")
        if unit < 2:
            pairs = equal_pairs(hashes)
        else:
            pairs = near_pairs(hashes, self.context.config.hashes.max_distance, unit - 2)
        write_table(self._pairs(unit), {"first": pairs[:, 0], "second": pairs[:, 1]})

    def summary(self) -> dict:
        groups = read_table(self.folder / "groups.parquet")
        exact = len(read_table(self._pairs(0)))
        return {
            "kept": count_kept(self),
            "groups": len(np.unique(groups["group"])),
            "exact": exact,
            "near": int((~groups["kept"].to_numpy()).sum()) - exact,
        }

    def _group(self) -> None:
        files = [self._filtered.part(number) for number in range(len(self.context.pool))]
        ids = [read_column(file, "id") for file in files]
        every = np.concatenate(ids)
        pairs = (read_table(self._pairs(unit)) for unit in range(self.steps()["pairs"]))
        labels = components((np.stack([table["first"], table["second"]], axis=1) for table in pairs), len(every))
        keep = self_dedup(labels, pixel_counts(self._filtered, files))
        write_groups(self.folder / "groups.parquet", labels, every, keep)
        write_kept(self, ids, keep)

    def _pairs(self, unit: int):
        return self.folder / "pairs" / f"{unit:05d}.parquet"

    def _column(self, name: str) -> np.ndarray:
        """Of all images that passed the filter, in order."""
        return np.concatenate([read_column(self._filtered.part(unit), name) for unit in range(len(self.context.pool))])
