"""What a run cannot read: counted, named and listed over all processes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data import Broken, SSLBatch, write_broken
from ..runs import RunFolder

logger = logging.getLogger(__name__)

_MIN_READ_BEFORE_STOP = 200


class BrokenLog:
    """Everything broken that any process has met, once, in the order of the samples; also in `broken.txt` of a folder.

    The processes share what they met in `merge`; the list does not depend on when they do.

    Args:
        folder: of the run.
        items: kind, name and reason of what was met before, and `reads`, the images read until then and how many of
            them were broken, as `state` gave them.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        items: Iterable[Sequence[str]] = (),
        reads: Sequence[int] = (0, 0),
    ) -> None:
        self._folder, self._accelerator = folder, accelerator
        self._list = RunFolder(folder).broken_file
        self._items = {(item.kind, item.name): item for item in (Broken(*values) for values in items)}
        self._reads = list(reads)
        self._start_interval()

    def _start_interval(self) -> None:
        self._batches, self._new_reads = 0, [0, 0]
        self._new: list[tuple[int, int, Broken]] = []

    @property
    def items(self) -> list[Broken]:
        """What was met until the last `merge`, in the order of the samples."""
        return list(self._items.values())

    @property
    def state(self) -> tuple[list[list[str]], list[int]]:
        """`items` and `reads` for a checkpoint."""
        return [list(item) for item in self.items], list(self._reads)

    @property
    def counts(self) -> dict[str, float]:
        """Number of different broken images, and of each other kind that was met."""
        counts = Counter(broken_images=0)
        counts.update(item.metric for item in self.items)
        return {name: float(count) for name, count in counts.items()}

    def write(self) -> None:
        """Makes `broken.txt` the list as it is; without a broken file there is none. Main process only."""
        write_broken(self._folder, self.items)

    def add(self, batch: SSLBatch) -> None:
        """Takes in what this process met in its next batch."""
        broken = [Broken(*values) for values in batch.broken]
        images = sum(item.kind == "image" for item in broken)
        self._new_reads[0] += batch.num_images + images
        self._new_reads[1] += images
        self._new += [(self._batches, self._accelerator.process_index, item) for item in broken]
        self._batches += 1

    def merge(self) -> None:
        """Shares what the processes met since the last call, and names what is new. Collective: call on all ranks."""
        sums = torch.tensor([*self._new_reads, len(self._new)], device=self._accelerator.device)
        *reads, num_new = self._accelerator.reduce(sums, reduction="sum").tolist()
        self._reads = [before + more for before, more in zip(self._reads, reads)]
        met = gather_object(self._new) if num_new else []
        self._start_interval()
        fresh = []
        for _, _, item in sorted(met, key=lambda entry: entry[:2]):
            if (item.kind, item.name) not in self._items:
                self._items[item.kind, item.name] = item
                fresh.append(item)
        if fresh and self._accelerator.is_main_process:
            for item in fresh:
                logger.warning("%s", item.message)
            with self._list.open("a", encoding="utf-8") as file:
                file.writelines(item.line for item in fresh)

    def check(self, max_share: float) -> None:
        """Refuses to go on where too many of the images are broken.

        Raises:
            ValueError: more than `max_share` of the images that all processes have read.
        """
        read, broken = self._reads
        if broken > max_share * max(read, _MIN_READ_BEFORE_STOP):
            last = next(item for item in reversed(self.items) if item.kind == "image")
            raise ValueError(
                f"{broken} of {read} images cannot be decoded, more than data.max_broken_share={max_share}; "
                f"the last: {last}; all are listed in {self._list}; repair the data or raise the share"
            )

    def check_shards(self, max_share: float, num_shards: int) -> None:
        """Refuses to go on where too many of the shards of streams are broken.

        Raises:
            ValueError: more than `max_share` of the `num_shards` that there are, and more than one of several.
        """
        broken = [item for item in self.items if item.kind == "shard"]
        some_may_be = max_share > 0 and num_shards > 1
        if len(broken) > max(max_share * num_shards, some_may_be):
            raise ValueError(
                f"{len(broken)} of {num_shards} shards (files) of streams are broken, more than "
                f"data.max_broken_shards={max_share} allows; the last: {broken[-1]}; all are listed in "
                f"{self._list}; repair or remove them, or raise the share"
            )
