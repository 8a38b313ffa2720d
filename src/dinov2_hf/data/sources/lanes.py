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
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from .permutation import Permutation
from .shards import LOST

if TYPE_CHECKING:
    from .base import ShardedImages

RUN = 8
"""Samples in a row from one lane: few, so that those of a batch come from several lanes, but more than one, so that a
batch does not need them all."""
_MAX_LANES = 64
_POWERS = [2**power for power in range(16)]
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
    repeated: bool = False
    """Whether another place of the epoch has the sample: it stands for one that cannot be read."""


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
        f"to read them once: {' or '.join(ways) or 'divide the data into more files or shards'}"
    )


class Lane:
    """One lane of a stream: its shards without end, in a new order every epoch, shuffled within blocks.

    Blocks of `block_size` samples are read whole and given in an order of their own. A block depends on nothing before
    it, so that a restart begins with the block it needs. Rows that are `LOST` are replaced by others of their block, or
    of the blocks after it. A lane whose shards have no samples reads those of all lanes.

    Args:
        shards: of the stream.
        lane, lanes: which of how many.
        key: numbers that the order depends on.
        block_size: samples that are shuffled among each other.
        shuffle: whether there is any new order at all.
    """

    def __init__(
        self, shards: ShardedImages, lane: int, lanes: int, key: tuple[int, ...], block_size: int, shuffle: bool
    ) -> None:
        self._shards = shards
        self._members = range(lane, len(shards), lanes)
        self._lane, self._lanes, self._key = lane, lanes, key
        self._block_size, self._shuffle = block_size, shuffle
        self._length: int | None = None
        self._borrows = False
        self._rows: Iterator[tuple[int, int, Any]] | None = None
        # of the block that follows
        self._epoch = self._position = 0
        # what was read of the sequence, from number `_first` on
        self._first = 0
        self._held: list[Entry] = []

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
        assert self._rows is not None
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
        rows = [block[source] for source in order]
        others: Iterator[tuple[int, int, Any]] = iter(())
        if any(value is LOST for _, _, value in block):
            others = cycle(self._readable(block))
        entries = []
        for place, row in enumerate(rows):
            lost = row[2] is LOST
            shard, number, value = next(others) if lost else row
            entries.append(Entry(self._epoch, self._position + place, shard, number, value, lost or self._borrows))
        self._position += len(block)
        return entries

    def _readable(self, block: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
        """The rows of a block that are not lost; if all are, as many of those that come after it in the epoch."""
        rows = [row for row in block if row[2] is not LOST]
        if not rows:
            after = chain(self._read_epoch(self._epoch, self._position + len(block)), self._read_epoch(self._epoch, 0))
            rows = list(islice((row for row in after if row[2] is not LOST), len(block)))
        if not rows:
            raise ValueError(self._without_samples())
        return rows

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
            assert length is not None, shard  # known at its end
            passed += length
        if not passed:
            if len(self._members) == len(self._shards):
                raise ValueError(self._without_samples())
            self._members, self._borrows = range(len(self._shards)), True
            yield from self._read_epoch(epoch, start)
            return
        self._length = passed

    def _without_samples(self) -> str:
        broken = self._shards.broken
        why = f"{len(broken)} of {len(self._shards)} shards are broken, such as {broken[0]}" if broken else ""
        return f"the streaming source has no samples; {why or 'check its path and split'}"
