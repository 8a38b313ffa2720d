"""What a run reads: the contract of a source of images to train on.

A source is an endless sequence of encoded images. A run reads it by number, so that a restart continues anywhere, and
every process and data worker holds a copy of it (pickled where workers are spawned). Sample `number` must be the same
in each of them, and at every time it is read.

To add a source:
- a Python generator: `generators.register_source`, then `data.train.path=generator:NAME`;
- images at random access, from Python: `training.MapSource` over anything with `__len__` and `read` (`IndexedImages`);
- shards that are read in order, from Python: `training.StreamSource` over `ShardedImages`;
- anything else, from Python: an object with the members of `TrainingSource`.

To add a format: pictures of a Pillow format are an entry in `data/formats.py`, other encodings of an image a branch in
`data/decode.py` too; tables that `datasets` reads are an entry of `TABLES` in `data/formats.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..broken import Broken
from .lanes import locate


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
    """What a run needs of a source; `check_source` says what an object lacks."""

    @property
    def num_shards(self) -> int:
        """Shards of all that is streamed, of which `data.max_broken_shards` may be broken; 0 without any."""
        ...

    def read(self, number: int) -> Sample:
        """Sample `number` of the endless sequence. Streaming sources are faster with rising numbers."""
        ...

    def replacement(self, number: int, attempt: int) -> Sample:
        """What to take where sample `number` cannot be decoded: the `attempt`-th sample (from 1) after it in its lane.

        From its own lane of its own source, so that no worker has to open another's.
        """
        ...

    def listing(self) -> Mapping[str, Mapping[str, Any]]:
        """What each source was made of when it was opened, by its key (`data.train`, `data.mix.NAME`).

        `count`, `unit` (what is counted) and `digest` of each. A checkpoint holds it; a run that continues with another
        listing says so.
        """
        ...


_MEMBERS = ("num_shards", "read", "replacement", "listing")


def is_source(source: Any) -> bool:
    """Whether an object has the members of a `TrainingSource`."""
    return all(hasattr(source, name) for name in _MEMBERS)


def check_source(source: Any) -> None:
    """Refuses an object that is not a `TrainingSource`.

    Raises:
        TypeError: naming what it lacks.
    """
    if lacking := [name for name in _MEMBERS if not hasattr(source, name)]:
        raise TypeError(
            f"{type(source).__name__} is not a source of images to train on: it lacks {', '.join(lacking)}; "
            "see dinov2_hf.data.sources.base.TrainingSource, or wrap it in MapSource or StreamSource"
        )


class LanedSource(ABC):
    """A training source that is read lane by lane; one that is not streamed has a single lane.

    Args:
        lanes: how many.
        listing: see `TrainingSource`.
    """

    def __init__(self, lanes: int, listing: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.lanes = lanes
        self._listing = dict(listing or {})

    def listing(self) -> dict[str, Mapping[str, Any]]:
        return self._listing

    def read(self, number: int) -> Sample:
        return self.at(*locate(number, self.lanes))

    def replacement(self, number: int, attempt: int) -> Sample:
        return self.at(*locate(number, self.lanes), attempt)

    @property
    def num_shards(self) -> int:
        return 0

    @abstractmethod
    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        """Sample `position + ahead` of a lane, to be followed by calls with the same `position` or a higher one."""


class IndexedImages(Protocol):
    """Encoded images at random access, such as an `ImageColumn`."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`; `data.fetch.Missing` where there are no bytes."""
        ...


class ShardedImages(Protocol):
    """Images in shards, each of which is read in order from any row: `Shards`, `GeneratedShards`.

    Every method that reads may raise ValueError for what ends the run, such as a connection that is lost.
    """

    embedded: bool
    """Whether the shards hold the images themselves, and not their paths."""

    def __len__(self) -> int:
        """Shards."""
        ...

    def length(self, shard: int) -> int | None:
        """Rows of a shard, where that is known without reading them."""
        ...

    def values(self, shard: int, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and value of the rows of a shard from row `start` on. At its end `length` is known."""
        ...

    def encoded(self, value: Any, shard: int, row: int) -> tuple[bytes, str]:
        """Bytes and name of an image."""
        ...

    def take_broken(self) -> Sequence[Broken]:
        """The broken shards that were found since the last call."""
        ...

    @property
    def broken(self) -> Sequence[Broken]:
        """All broken shards that were found."""
        ...
