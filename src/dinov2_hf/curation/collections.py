"""The collections of a curation, divided into shards that any task reads by itself."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..config import SourceConfig
from ..config.curation import CurationConfig
from ..data.broken import Broken
from ..data.sources import LOST, ImageColumn, Shards, open_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A part of a source: rows, or a file of a stream."""

    source: str
    """Name in its table of the configuration."""
    config: SourceConfig
    first: int
    """First row; of a stream the number of the file."""
    count: int | None
    """Rows; None: it is a file of a stream."""
    listed: str | None = None
    """Digest of the names of the source's images, where they are files that were listed."""

    def read(self, positions: Sequence[int] | np.ndarray | None = None) -> Iterator[tuple[int, bytes, str]]:
        """Position in the shard, bytes and name of its images: of all, or of those at ascending `positions`.

        Raises:
            ValueError: there are other files now than when the source was divided into shards.
        """
        images = _opened(_key(self.config))
        if images.listed != self.listed:
            raise ValueError(
                f"files of {self.config.path} were added, removed or renamed while it was read; start the command again"
            )
        if self.count is not None:
            for position in range(self.count) if positions is None else positions:
                yield int(position), *images.read(self.first + int(position))
            return
        shards = _shards(_key(self.config))
        wanted = None if positions is None else set(map(int, positions))
        stop = None if wanted is None else max(wanted, default=-1) + 1
        for position, value in shards.values(self.first):
            if stop is not None and position >= stop:
                break
            if value is not LOST and (wanted is None or position in wanted):
                yield position, *images.encoded(value, f"row {position} of file {self.first}")
        for item in shards.take_broken():
            logger.warning("skipped what cannot be read of a broken shard: %s", item)

    @property
    def broken(self) -> Broken | None:
        """What is wrong with a file of a stream that was read and found broken."""
        if self.count is not None:
            return None
        shards = _shards(_key(self.config))
        return next((item for item in shards.broken if item.name == shards.name(self.first)), None)


@dataclass(frozen=True)
class Collection:
    """The pool (all its sources together), a seed set or an evaluation set."""

    name: str
    """`pool`, `seeds.NAME` or `evaluations.NAME`."""
    shards: list[Shard]
    fingerprint: str
    """Of what its sources hold."""

    @property
    def count(self) -> int | None:
        """Images, broken ones among them; None where a stream does not say."""
        counts = [shard.count for shard in self.shards if shard.count is not None]
        return sum(counts) if len(counts) == len(self.shards) else None


def open_collections(config: CurationConfig) -> dict[str, Collection]:
    """All collections of the configuration, by name.

    Raises:
        ValueError: nothing to read in one, no such split or column, each with what there is instead.
    """
    groups = {"pool": config.pool}
    groups |= {f"seeds.{name}": {name: seed} for name, seed in config.seeds.items()}
    groups |= {f"evaluations.{name}": {name: source} for name, source in config.evaluations.items()}
    return {name: _open_collection(name, sources, config.rows_per_shard) for name, sources in groups.items()}


def _open_collection(collection: str, sources: dict[str, SourceConfig], rows_per_shard: int) -> Collection:
    shards: list[Shard] = []
    contents: list[list[Any]] = []
    for name in sorted(sources):
        source = sources[name]
        where = collection if collection.endswith(f".{name}") else f"{collection}.{name}"
        try:
            images = _opened(_key(source), where)
        except ValueError as error:
            raise ValueError(f"{where}.path={source.path}: {error}") from None
        dataset = images.dataset
        contents.append([name, _key(source), images.name])
        if isinstance(dataset, Dataset):
            starts = range(0, len(dataset), rows_per_shard)
            shards += [
                Shard(name, source, start, min(rows_per_shard, len(dataset) - start), images.listed) for start in starts
            ]
            contents.append([images.fingerprint, rows_per_shard])
        else:
            shards += [Shard(name, source, number, None, images.listed) for number in range(dataset.num_shards)]
            contents.append(
                [dataset.num_shards, images.fingerprint if images.listed is not None else images.shard_files]
            )
    return Collection(collection, shards, hashlib.sha256(json.dumps(contents).encode()).hexdigest())


def _key(source: SourceConfig) -> str:
    """What of a source says where its images are."""
    names = ["path", "split", "name", "image_column", "streaming"]
    names += ["split_folders"] if source.split_folders is not None else []
    values: dict[str, Any] = asdict(source)
    return json.dumps({name: values[name] for name in names})


@lru_cache(maxsize=64)
def _opened(key: str, name: str = "") -> ImageColumn:
    config = SourceConfig(**json.loads(key))
    images = open_images(config, config.streaming, name)
    assert isinstance(images.dataset, (Dataset, IterableDataset))
    return images


@lru_cache(maxsize=64)
def _shards(key: str) -> Shards:
    return Shards(_opened(key))
