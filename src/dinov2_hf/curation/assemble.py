"""Seventh stage: the chosen images as shards that training streams, with a data card."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as Pillow

from ..files import beside
from .collections import Shard
from .embed import EmbedStage, replacements
from .filter import FilterStage
from .stage import Context, Stage
from .tables import positions_of, read_column, read_table, write_table

FEATURES = Features(
    {
        "image": Image(),
        "id": Value("int64"),
        "source": Value("string"),
        "name": Value("string"),
        "repeats": Value("int32"),
    }
)
_ROWS_OF_GROUP = 64  # so that a stream holds few images in memory at once


@dataclass(frozen=True)
class Chosen:
    """An image of the result."""

    id: int
    data: bytes
    source: str
    name: str
    repeats: int
    """How often it was retrieved; 1 where nothing is."""


class AssembleStage(Stage):
    """Writes `images/train-NNNNN.parquet` (or `.tar`) for every shard of the pool that has chosen images.

    Args:
        selected: the stage that chose.
        filtered: holds the images that hooks have changed.
        seeds: the seed sets as they were embedded.
        before: all stages, in order, for the card.
    """

    def __init__(
        self,
        context: Context,
        selected: Stage,
        filtered: FilterStage,
        seeds: dict[str, EmbedStage],
        before: list[Stage],
    ) -> None:
        super().__init__("assemble", context, [selected])
        self._selected, self._filtered, self._seeds, self._before = selected, filtered, seeds, before

    @property
    def images(self) -> Path:
        return self.context.output / "images"

    @property
    def outside(self) -> list[Path]:
        return [self.images]

    @property
    def included(self) -> list[tuple[str, int, Shard]]:
        """Name, number and shard of the seed sets that go into the result themselves."""
        names = [name for name, seed in self.context.config.seeds.items() if seed.include]
        collections = self.context.collections
        return [(name, *item) for name in names for item in enumerate(collections[f"seeds.{name}"].shards)]

    @property
    def settings(self) -> dict:
        return vars(self.context.config.assemble) | {"included": sorted({name for name, _, _ in self.included})}

    def steps(self) -> dict[str, int]:
        return {"write": len(self.context.pool) + len(self.included)}

    def do(self, step: str, unit: int) -> None:
        pool = len(self.context.pool)
        chosen = self._of_pool(unit) if unit < pool else self._of_seed(*self.included[unit - pool])
        if self.context.config.assemble.format == "parquet":
            count, written = _write_parquet(self.images / f"train-{unit:05d}.parquet", chosen, self._copies)
        else:
            count, written = _write_tar(self.images / f"train-{unit:05d}.tar", chosen, self._copies)
        write_table(self.folder / "written" / f"{unit:05d}.parquet", {"images": [count], "written": [written]})

    def summary(self) -> dict:
        from .card import write_card

        tables = [read_table(self.folder / "written" / f"{unit:05d}.parquet") for unit in range(self.steps()["write"])]
        images, written = ([table[name][0].as_py() for table in tables] for name in ("images", "written"))
        if not any(images):
            raise ValueError("no image was chosen; see the counts of the stages before")
        counts = {"kept": sum(images), "written": sum(written), "files": sum(map(bool, images))}
        write_card(self.images / "README.md", self.context, self._before, counts)
        return counts

    def _copies(self, chosen: Chosen) -> int:
        return chosen.repeats if self.context.config.assemble.repeat else 1

    def _of_pool(self, unit: int) -> Iterator[Chosen]:
        table = read_table(self._selected.part(unit))
        ids, shard, changed = table["id"].to_numpy(), self.context.pool[unit], replacements(self._filtered, unit)
        repeats = table["repeats"].to_numpy() if "repeats" in table.column_names else np.ones(len(ids), dtype=int)
        for (position, data, name), image_id, count in zip(shard.read(positions_of(ids)), ids, repeats):
            yield Chosen(int(image_id), changed.get(position, data), shard.source, name, int(count))

    def _of_seed(self, seed: str, number: int, shard: Shard) -> Iterator[Chosen]:
        ids = read_column(self._seeds[seed].part(number), "id")  # those that can be decoded
        for image_id, (_, data, name) in zip(ids, shard.read(positions_of(ids))):
            yield Chosen(int(image_id), data, f"seeds.{seed}", name, 1)


def _write_parquet(path: Path, chosen: Iterator[Chosen], copies) -> tuple[int, int]:
    """Images and rows written; no file where there are none."""
    images = rows = 0
    schema = FEATURES.arrow_schema
    with beside(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        group: list[dict] = []
        for item in chosen:
            image = {"bytes": item.data, "path": f"{_key(item)}.{suffix_of(item.data)}"}
            row = {"image": image, "id": item.id, "source": item.source, "name": item.name, "repeats": item.repeats}
            images += 1
            for _ in range(copies(item)):
                group.append(row)
                if len(group) == _ROWS_OF_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                    rows, group = rows + len(group), []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if not images:
        path.unlink()
    return images, rows + len(group)


def _write_tar(path: Path, chosen: Iterator[Chosen], copies) -> tuple[int, int]:
    """As `_write_parquet`, with an image and a `.json` for each sample."""
    images = written = 0
    with beside(path) as temporary, tarfile.open(temporary, "w") as tar:
        for item in chosen:
            facts = {"id": item.id, "source": item.source, "name": item.name, "repeats": item.repeats}
            images += 1
            for copy in range(copies(item)):
                key = f"{_key(item)}-{copy}" if copy else _key(item)
                for suffix, data in ((suffix_of(item.data), item.data), ("json", json.dumps(facts).encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")  # of time 0: the same bytes in every run
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                written += 1
    if not images:
        path.unlink()
    return images, written


def _key(item: Chosen) -> str:
    return f"{item.source.replace('.', '-')}-{item.id:016x}"


def suffix_of(data: bytes) -> str:
    """What a file of these bytes is called."""
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    try:
        name = (Pillow.open(io.BytesIO(data)).format or "bin").lower()
        return {"jpeg": "jpg", "mpo": "jpg"}.get(name, name)
    except OSError:  # Pillow does not know it, our decoder does
        return "bin"
