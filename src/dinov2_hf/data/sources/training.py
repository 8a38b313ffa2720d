"""The sequence of images that a run reads: endless, seeded, the same for any number of processes and workers.

A source of `n` images, or a lane of a streaming one (`lanes.py`), runs through its images in a new random order every
`n` samples: an epoch of the data, which has nothing to do with the epochs of a run (`train.epoch_length`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from ...config import DataConfig, SourceConfig
from .base import IndexedImages, LanedSource, Sample, ShardedImages, TrainingSource
from .columns import ImageColumn, find_images
from .generators import GeneratedImages, GeneratedShards, is_generated, open_generated
from .held import HeldImages, held_at, is_held, is_sequence, passes_over
from .lanes import Lane, advise, automatic_lanes
from .load import load
from .mixture import MixedSource
from .permutation import Permutation
from .shards import Shards

_ORDER = 3
"""Keeps the random stream apart from the others that share a seed: 1 and 2 of the loader, 4 of the mixture."""


class MapSource(LanedSource):
    """Images at random access, shuffled over their whole number.

    Args:
        images: anything with `__len__` and `read`.
        seed: of the order.
        shuffle: a new order in every epoch; otherwise that of `images`.
        lanes: as many as the other sources of a mixture have.
        source: number in a mixture.
        listing: what the images are, see `TrainingSource.listing`.
    """

    def __init__(
        self,
        images: IndexedImages,
        seed: int,
        shuffle: bool = True,
        lanes: int = 1,
        source: int = 0,
        listing: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(lanes, listing)
        self._images = images
        self._shuffle = shuffle
        self._key = (seed, _ORDER, source)
        self._source = source
        self._order: tuple[int, Permutation] | None = None

    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        epoch, index = divmod((position + ahead) * self.lanes + lane, len(self._images))
        if self._shuffle:
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, Permutation(len(self._images), (*self._key, epoch)))
            index = self._order[1][index]
        return Sample(*self._images.read(index), epoch, index, self._source)


class StreamSource(LanedSource):
    """Images in the order of their files, lane by lane; each lane is shuffled by files and within blocks.

    A lane is opened when it is first read, at the block that is wanted, and stays with the process that opened it.

    Args:
        shards: what is read, such as `Shards` of a column or `GeneratedShards`.
        seed: of the order.
        shuffle_buffer: samples that are shuffled among each other, in all lanes together.
        shuffle: as of `MapSource`.
        lanes: as of `MapSource`; no more than shards.
        source: as of `MapSource`.
        listing: as of `MapSource`.
    """

    def __init__(
        self,
        shards: ShardedImages,
        seed: int,
        shuffle_buffer: int,
        shuffle: bool = True,
        lanes: int = 1,
        source: int = 0,
        listing: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(lanes, listing)
        self.embedded = shards.embedded
        self._shards = shards
        self._key = (seed, _ORDER, source)
        self._source = source
        self._block_size = max(shuffle_buffer // lanes, 1) if shuffle else 1
        self._shuffle = shuffle
        self._opened: dict[int, Lane] = {}
        self._process = os.getpid()

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        if self._process != os.getpid():  # a fork shares the place in open files with its parent
            self._opened, self._process = {}, os.getpid()
        if lane not in self._opened:
            self._opened[lane] = Lane(self._shards, lane, self.lanes, self._key, self._block_size, self._shuffle)
        entry = self._opened[lane].read(position, ahead)
        data, name = self._shards.encoded(entry.value, entry.shard, entry.row)
        index, broken = entry.position * self.lanes + lane, tuple(self._shards.take_broken())
        return Sample(data, name, entry.epoch, index, self._source, entry.repeated, broken)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}


def open_training_source(config: DataConfig, seed: int) -> LanedSource:
    """The endless sequence of images that `config` describes.

    Raises:
        ValueError: nothing to read, no such split, column or generator, more lanes than files, each with what there is
            instead.
    """
    configs = {"data.train": config.train} | {f"data.mix.{name}": config.mix[name] for name in sorted(config.mix)}
    images, listings = {}, {}
    for name, source in configs.items():
        images[name], listings[name] = _open(source, name)
    streams = {name: len(found) for name, found in images.items() if not isinstance(found, (ImageColumn, HeldImages))}
    lanes = _lanes(config, streams)
    sources: dict[str, LanedSource] = {}
    for number, (name, found) in enumerate(images.items()):
        place = (config.shuffle, lanes, number, {name: listings[name]})
        if isinstance(found, (ImageColumn, HeldImages)):
            sources[name] = MapSource(found, seed, *place)
        else:
            sources[name] = StreamSource(found, seed, config.shuffle_buffer, *place)
    if len(sources) == 1:
        return sources["data.train"]
    return MixedSource(sources, [source.weight for source in configs.values()], seed)


def _open(config: SourceConfig, name: str) -> tuple[ImageColumn | HeldImages | ShardedImages, dict[str, Any]]:
    """The images of a source and what it is made of (`Loaded.listing`)."""
    if is_generated(config.path):
        shards = open_generated(config, name)
        return shards, shards.listing()
    item = held_at(config) if is_held(config.path) else None
    if item is not None and not isinstance(item, (Dataset, IterableDataset)):
        if is_sequence(item):
            held = HeldImages(item, str(config.path))
            return held, held.listing()
        shards = GeneratedShards(GeneratedImages(name, passes_over(item)))
        return shards, shards.listing()
    loaded = load(config, config.streaming or isinstance(item, IterableDataset), name)
    images = find_images(loaded, config)
    return Shards(images) if isinstance(loaded.dataset, IterableDataset) else images, loaded.listing()


def reading_advice(source: TrainingSource, batch_size: int, num_workers: int, num_processes: int) -> str | None:
    """What to say where several data workers read the same files, and how to change it; None where they do not.

    Args:
        source: from `open_training_source`.
        batch_size: images per process and forward.
        num_workers: data workers of a process.
        num_processes: processes of the run.
    """
    if not isinstance(source, LanedSource):
        return None
    parts = source.sources if isinstance(source, MixedSource) else [source]
    shards = [part.num_shards for part in parts if isinstance(part, StreamSource) and part.embedded]
    return advise(source.lanes, min(shards), batch_size, num_workers, num_processes) if shards else None


def _lanes(config: DataConfig, shards: dict[str, int]) -> int:
    """Lanes of all sources together; `shards` has the streaming ones."""
    if not shards:
        return 1
    fewest = min(shards, key=shards.__getitem__)
    if config.lanes > shards[fewest]:
        raise ValueError(
            f"data.lanes={config.lanes}, but {fewest} has {shards[fewest]} shards (files) to read side by side; "
            f"use {shards[fewest]} or fewer, or 0 for automatic"
        )
    if config.lanes:
        return config.lanes
    return min(map(automatic_lanes, shards.values())) if config.shuffle else 1
