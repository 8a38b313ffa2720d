"""How a stream is read: divided into lanes, so that a data worker reads its own share of the files alone.

Lane `k` of `L` has the shards (files) `k`, `k + L`, `k + 2L`, …, one after the other, and repeats them without end.
The endless sequence of a source takes `RUN` samples from each lane in turn. `L` depends on the data and the
configuration alone, so the sequence is the same for any number of processes and workers, and a worker opens the lanes
that its batches take samples from. Where workers and lanes do not match, several workers read the same lane, each for
itself: that changes no sample, but the files are read that many times. `advise` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from datasets import IterableDataset
from datasets.utils.file_utils import xopen

from .columns import ImageColumn
from .permutation import Permutation

RUN = 8
"""Samples in a row from one lane: few, so that those of a batch come from several lanes, but more than one, so that a
batch does not need them all."""
_MAX_LANES = 64
_POWERS = [2**power for power in range(16)]
_ROWS_AT_ONCE = 16
# keep apart the orders that share a seed
SHARDS, SAMPLES = 1, 2


class Entry(NamedTuple):
    """One sample of a lane, not read yet."""

    epoch: int
    """How often the lane had been run through before."""
    position: int
    """Place in that epoch."""
    shard: int
    row: int
    value: Any
    """As `ImageColumn.encoded` takes it."""


def locate(number: int, lanes: int) -> tuple[int, int]:
    """The lane of sample `number` of the endless sequence, and its position there."""
    run, place = divmod(number, RUN)
    turn, lane = divmod(run, lanes)
    return lane, turn * RUN + place


def divides_evenly(lanes: int, num_shards: int) -> bool:
    """Whether no lane has more shards than another, or a tenth at most.

    A lane of two shards beside one of a single shard would show its images half as often.
    """
    return lanes <= num_shards and (num_shards % lanes == 0 or num_shards // lanes >= 10)


def automatic_lanes(num_shards: int) -> int:
    """The largest power of two up to 64 that divides the shards evenly."""
    return max(lanes for lanes in _POWERS if lanes <= _MAX_LANES and divides_evenly(lanes, num_shards))


def readers_of_a_lane(lanes: int, batch_size: int, num_readers: int) -> int:
    """How many of all data workers, `num_readers`, read the same lane: the most for any lane."""
    # worker t of T reads batches t, t + T, …; where they start in the cycle of lanes is t * batch_size modulo `step`
    cycle = lanes * RUN
    step = math.gcd(cycle, num_readers * batch_size)
    starts = range(0, step, math.gcd(step, batch_size))
    counts = [0] * lanes
    for start in starts:
        for lane in {
            number % cycle // RUN
            for first in range(start, cycle, step)
            for number in (*range(first, first + min(batch_size, cycle), RUN), first + batch_size - 1)
        }:
            counts[lane] += num_readers // len(starts)
    return max(counts)


def advise(lanes: int, num_shards: int, batch_size: int, num_workers: int, num_processes: int) -> str | None:
    """What to say where several data workers read the same lane, and how to change it.

    Args:
        lanes: of the source.
        num_shards: how many files it could be divided by.
        batch_size: of a process.
        num_workers: of a process.
        num_processes: of the run.
    """

    def readers(lanes: int, num_workers: int) -> int:
        return readers_of_a_lane(lanes, batch_size, num_processes * max(num_workers, 1))

    together = readers(lanes, num_workers)
    if together == 1:
        return None
    fewer = next((workers for workers in range(num_workers - 1, 0, -1) if readers(lanes, workers) == 1), None)
    possible = sorted({*_POWERS, num_processes * max(num_workers, 1) * -(-batch_size // RUN)})
    possible = [value for value in possible if value > lanes and divides_evenly(value, num_shards)]
    more = next((value for value in possible if readers(value, num_workers) == 1), None)
    ways = [f"data.num_workers={fewer}"] if fewer else []
    ways += [f"data.lanes={more} (in a new run)"] if more else []
    return (
        f"a lane of the streaming data ({lanes} in all) is read by {together} of the "
        f"{num_processes * max(num_workers, 1)} data workers, so that the files are read {together} times over; "
        f"to read them once: {' or '.join(ways) or 'divide the data into more files'}"
    )


class Shards:
    """The shards of a stream of images, each of which can be read by itself from any row."""

    def __init__(self, images: ImageColumn) -> None:
        assert isinstance(images.dataset, IterableDataset)
        self._images = images
        self._lengths = dict(enumerate(images.lengths or ()))
        self._row_groups: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._images.dataset.num_shards

    def length(self, shard: int) -> int | None:
        """Rows of a shard, where that is known without reading them: parquet, saved sets, what was read before."""
        if shard not in self._lengths and self._is_parquet(shard):
            self._lengths[shard] = sum(self._rows_of_groups(shard))
        return self._lengths.get(shard)

    def encoded(self, entry: Entry) -> tuple[bytes, str]:
        """Bytes and name of an image; the name says where it lies."""
        files, lengths = self._images.shard_files, self._images.lengths
        row = f"row {entry.row + (sum(lengths[: entry.shard]) if lengths else 0)}"
        data, name = self._images.encoded(entry.value, row)
        if files is not None and (self._images.embedded or name == row):
            name = f"{name} of {files[entry.shard]}"
        return data, name

    def values(self, shard: int, start: int) -> Iterator[tuple[int, Any]]:
        """Number and value of the rows of a shard from row `start` on.

        Row groups of parquet before it are not read; of other files everything is, up to it.
        """
        whole = self._images.dataset.shard(num_shards=len(self), index=shard)
        lengths: list[int | None] = [None]
        if start and self._is_parquet(shard):
            lengths, groups = self._rows_of_groups(shard), whole.reshard()
            assert groups.num_shards == len(lengths), (groups.num_shards, lengths)
        row = 0
        for group, length in enumerate(lengths):
            if length is not None and row + length <= start:
                row += length
                continue
            part = whole if length is None else groups.shard(num_shards=len(lengths), index=group)
            # .iter() gives all samples in every worker; plain iteration would share them out by worker
            for rows in part.iter(batch_size=_ROWS_AT_ONCE):
                for value in rows[self._images.name]:
                    if row >= start:
                        yield row, value
                    row += 1
        self._lengths[shard] = row

    def _is_parquet(self, shard: int) -> bool:
        return self._images.shard_files is not None and self._images.shard_files[shard].endswith(".parquet")

    def _rows_of_groups(self, shard: int) -> list[int]:
        if shard not in self._row_groups:
            with xopen(self._images.shard_files[shard], "rb") as file:
                footer = pq.read_metadata(file)
            self._row_groups[shard] = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return self._row_groups[shard]


class Lane:
    """One lane of a stream: its shards without end, in a new order every epoch, shuffled within blocks.

    Blocks of `block_size` samples are read whole and given in an order of their own. A block depends on nothing before
    it, so that a restart begins with the block it needs.

    Args:
        shards: of the stream.
        lane, lanes: which of how many.
        key: numbers that the order depends on.
        block_size: samples that are shuffled among each other.
        shuffle: whether there is any new order at all.
    """

    def __init__(
        self, shards: Shards, lane: int, lanes: int, key: tuple[int, ...], block_size: int, shuffle: bool
    ) -> None:
        self._shards = shards
        self._members = range(lane, len(shards), lanes)
        self._lane, self._lanes, self._key = lane, lanes, key
        self._block_size, self._shuffle = block_size, shuffle
        self._length: int | None = None
        self._rows: Iterator[tuple[int, int, Any]] | None = None
        # of the block that follows
        self._epoch = self._position = 0
        # what was read of the sequence, from number `_first` on
        self._first, self._held = 0, []

    def read(self, number: int, ahead: int = 0) -> Entry:
        """Entry `number + ahead` of the endless sequence.

        Entries from `number` on are kept; for one before the `number` of the last call the lane is opened anew.
        """
        gap = number - self._first - len(self._held)
        if self._rows is None or number < self._first or (self._length and number % self._length < gap):
            self._open(number)  # which is nearer than to read on
        while number + ahead >= self._first + len(self._held):
            past = min(number - self._first, len(self._held))
            self._held, self._first = self._held[past:], self._first + past
            self._held += self._next_block()
        return self._held[number + ahead - self._first]

    def _open(self, number: int) -> None:
        """Begins with the block of `number`."""
        epoch, position = (0, number) if self._length is None else divmod(number, self._length)
        begin = position // self._block_size * self._block_size
        rows = self._read_epoch(epoch, begin)
        block = list(islice(rows, self._block_size))
        if begin + len(block) <= position:  # the first epoch ends before: now its length is known
            self._open(number)
            return
        self._rows, self._epoch, self._position = rows, epoch, begin
        self._first, self._held = number - position + begin, self._entries(block)

    def _next_block(self) -> list[Entry]:
        block = list(islice(self._rows, self._block_size))
        if not block:
            self._epoch, self._position = self._epoch + 1, 0
            self._rows = self._read_epoch(self._epoch, 0)
            block = list(islice(self._rows, self._block_size))
        return self._entries(block)

    def _entries(self, block: list[tuple[int, int, Any]]) -> list[Entry]:
        """A block in the order in which it is given."""
        order: Sequence[int] = range(len(block))
        if self._shuffle:
            order = Permutation(
                len(block), (*self._key, SAMPLES, self._epoch, self._lane, self._position // self._block_size)
            )
        entries = [Entry(self._epoch, self._position + place, *block[source]) for place, source in enumerate(order)]
        self._position += len(block)
        return entries

    def _read_epoch(self, epoch: int, start: int) -> Iterator[tuple[int, int, Any]]:
        """Shard, row and value of the samples of an epoch from `start` on, in the order of the shards."""
        order: Sequence[int] = range(len(self._members))
        if self._shuffle:
            order = Permutation(len(self._members), (*self._key, SHARDS, epoch, self._lane, 0))
        passed = 0
        for place in order:
            shard = self._members[place]
            skipped = max(start - passed, 0)
            length = self._shards.length(shard) if skipped else None
            if length is None or length > skipped:
                for row, value in self._shards.values(shard, skipped):
                    yield shard, row, value
                length = self._shards.length(shard)
            passed += length
        if not passed:
            raise ValueError(
                f"lane {self._lane} of {self._lanes} of the streaming source has no samples; check its path and split"
                + (", remove files without rows, or use data.lanes=1" if self._lanes > 1 else "")
            )
        self._length = passed
