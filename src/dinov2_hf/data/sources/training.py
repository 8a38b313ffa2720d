"""The sequence of images that a run reads: endless, seeded, the same for any number of processes and workers.

A source of `n` images, or a lane of a streaming one (`lanes.py`), runs through its images in a new random order every
`n` samples: an epoch of the data, which has nothing to do with the epochs of a run (`train.epoch_length`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from datasets import Dataset

from ...config import DataConfig
from ..broken import Broken
from .columns import ImageColumn, find_images
from .lanes import Lane, advise, automatic_lanes, locate
from .load import load
from .permutation import Permutation
from .shards import Shards

_PERIOD = 1024
# keep apart the random streams that share a seed with each other and with those of the loader
_ORDER, _PATTERN = 3, 4


@dataclass(frozen=True)
class Sample:
    """One encoded image."""

    data: bytes
    """The file's bytes."""
    name: str
    """How a person finds it: a path, or the row in its source."""
    epoch: int
    """How often the source, or its lane of it, had been run through before."""
    index: int
    """Row in the source (map-style), or a number that no other sample of the epoch has (streaming)."""
    source: int = 0
    """Which source of a mixture: 0 for `data.train`, then those of `data.mix` by name."""
    repeated: bool = False
    """Whether it stands for one that cannot be read, and has a place of its own in the epoch as well."""
    broken: tuple[Broken, ...] = field(default=(), compare=False)
    """The broken shards that were found on the way to it."""


class TrainingSource(Protocol):
    """What the data loader reads from."""

    def read(self, number: int) -> Sample:
        """Sample `number` of the endless sequence. Streaming sources want rising numbers."""

    def replacement(self, number: int, attempt: int) -> Sample:
        """What to take where sample `number` cannot be decoded: the `attempt`-th sample (from 1) after it in its lane.

        From its own lane of its own source, so that no worker has to open another's.
        """


class LanedSource(ABC):
    """A training source that is read lane by lane; one that is not streamed has a single lane."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._listing: dict[str, dict[str, Any]] = {}

    def listing(self) -> dict[str, dict[str, Any]]:
        """What each source was made of when it was opened, by its key (`data.train`, `data.mix.NAME`).

        `open_training_source` sets it. Values are those of `Loaded.listing`: `count`, `unit` and `digest`.
        """
        return self._listing

    def read(self, number: int) -> Sample:
        return self.at(*locate(number, self.lanes))

    def replacement(self, number: int, attempt: int) -> Sample:
        return self.at(*locate(number, self.lanes), attempt)

    @property
    def num_shards(self) -> int:
        """Shards of all that is streamed."""
        return 0

    @abstractmethod
    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        """Sample `position + ahead` of a lane, to be followed by calls with the same `position` or a higher one."""


class MapSource(LanedSource):
    """Images at random access, shuffled over their whole number."""

    def __init__(self, images: ImageColumn, seed: int, shuffle: bool = True, lanes: int = 1, source: int = 0) -> None:
        super().__init__(lanes)
        assert isinstance(images.dataset, Dataset)
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
    """

    def __init__(
        self,
        images: ImageColumn,
        seed: int,
        shuffle_buffer: int,
        shuffle: bool = True,
        lanes: int = 1,
        source: int = 0,
    ) -> None:
        super().__init__(lanes)
        self.embedded = images.embedded
        self._shards = Shards(images)
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


class MixedSource(LanedSource):
    """Several sources in fixed shares, each of which repeats without end by itself.

    In every lane a seeded pattern of 1,024 samples says which source each is from; how many came from it before is
    counted from the pattern, so that nothing of any source is left out or repeated and any number is found at once.

    Args:
        sources: by name, with as many lanes as each other, in the order of their `Sample.source`.
        weights: shares of the sources, relative to each other.
        seed: of the pattern.

    Raises:
        ValueError: a share too small for a single sample of the pattern.
    """

    def __init__(self, sources: dict[str, LanedSource], weights: Sequence[float], seed: int) -> None:
        self.sources = list(sources.values())
        super().__init__(self.sources[0].lanes)
        assert all(source.lanes == self.lanes for source in self.sources)
        self._names = list(sources)
        self._counts = _shares(weights)
        self._seed = seed
        self._patterns: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for name, weight, count in zip(self._names, weights, self._counts):
            if count == 0:
                raise ValueError(
                    f"{name}.weight={weight} of {sum(weights):g} in all is less than half a sample in {_PERIOD}; "
                    f"use {sum(weights) / _PERIOD:g} or more, or leave the source out"
                )

    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        if lane not in self._patterns:
            self._patterns[lane] = self._pattern(lane)
        choices, before = self._patterns[lane]
        turn, place = divmod(position, _PERIOD)
        choice = int(choices[place])
        own = turn * self._counts[choice] + int(before[place])
        sample = self.sources[choice].at(lane, own, ahead)
        name = self._names[choice]
        broken = tuple(item._replace(name=f"{name}: {item.name}") for item in sample.broken)
        return replace(sample, name=f"{name}: {sample.name}", broken=broken)

    @property
    def num_shards(self) -> int:
        return sum(source.num_shards for source in self.sources)

    def _pattern(self, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place `[1024]`: its source, and how many places before it have the same."""
        order = np.array(Permutation(_PERIOD, (self._seed, _PATTERN, lane)))
        choices = np.repeat(np.arange(len(self._counts)), self._counts)[order]
        before = np.zeros(_PERIOD, dtype=np.int64)
        for choice in range(len(self._counts)):
            chosen = choices == choice
            before[chosen] = np.arange(chosen.sum())
        return choices, before


def open_training_source(config: DataConfig, seed: int) -> LanedSource:
    """The endless sequence of images that `config` describes.

    Raises:
        ValueError: nothing to read, no such split or column, more lanes than files, each with what there is instead.
    """
    configs = {"data.train": config.train} | {f"data.mix.{name}": config.mix[name] for name in sorted(config.mix)}
    loaded = {name: load(source, source.streaming, name) for name, source in configs.items()}
    images = {name: find_images(loaded[name], source) for name, source in configs.items()}
    shards = {name: images[name].dataset.num_shards for name in configs if configs[name].streaming}
    lanes = _lanes(config, shards)
    sources: dict[str, LanedSource] = {}
    for number, name in enumerate(configs):
        if name in shards:
            sources[name] = StreamSource(images[name], seed, config.shuffle_buffer, config.shuffle, lanes, number)
        else:
            sources[name] = MapSource(images[name], seed, config.shuffle, lanes, number)
    opened = sources["data.train"]
    if len(sources) > 1:
        opened = MixedSource(sources, [source.weight for source in configs.values()], seed)
    opened._listing = {name: loaded[name].listing() for name in configs}
    return opened


def reading_advice(source: LanedSource, batch_size: int, num_workers: int, num_processes: int) -> str | None:
    """What to say where several data workers read the same files, and how to change it; None where they do not.

    Args:
        source: from `open_training_source`.
        batch_size: images per process and forward.
        num_workers: data workers of a process.
        num_processes: processes of the run.
    """
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


def _shares(weights: Sequence[float]) -> list[int]:
    """How many of the places of a pattern each source gets, by largest remainder."""
    exact = [weight / sum(weights) * _PERIOD for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: _PERIOD - sum(counts)]:
        counts[source] += 1
    return counts
