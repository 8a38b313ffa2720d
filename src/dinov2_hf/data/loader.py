"""Batches for training: which samples they hold, and how they come together in the data workers.

Everything random is drawn from generators seeded by what is drawn for: the crops and colours of a sample by
`(seed, epoch, index)`, the masks of a batch by `(seed, step, rank)`. Neither worker nor process nor order matters, and
a restart continues by the number of the batch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..config import Masks, RunConfig
from .batch import SSLBatch
from .broken import Broken
from .crops import MultiCrop
from .decode import BrokenImage, Decoding, is_shallow
from .masking import draw_batch_masks
from .photometric import Parameter, draw_view_parameters
from .shared_memory import PREFETCH
from .sources.base import TrainingSource
from .workers import WorkerLoader

_MAX_BROKEN_IN_A_ROW = 100
# keep apart the random streams that share a seed
_CROPS, _MASKS = 1, 2


@dataclass
class _Notes:
    """What was found while a batch was read, see `SSLBatch`."""

    broken: list[Broken] = field(default_factory=list)
    shallow: list[str] = field(default_factory=list)


class TrainingBatches(IterableDataset):
    """The batches of one process, in order, from batch `start` to batch `stop` (exclusive).

    Batch `b` of rank `r` holds the samples `(b * world_size + r) * batch_size` and following. An unreadable image is
    replaced by the next readable one of the source, with crops of its own.

    Args:
        source: endless sequence of encoded images.
        config: the run.
        start: first batch.
        stop: the batch after the last one.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, source: TrainingSource, config: RunConfig, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._source = source
        self._config = config
        self._start, self._stop = start, stop
        self._rank, self._world_size = rank, world_size
        self._crop = MultiCrop(config.crops, config.model.num_channels, Decoding.of(config.data))

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[SSLBatch | ValueError]:
        worker = get_worker_info()
        first, step = (self._start, 1) if worker is None else (self._start + worker.id, worker.num_workers)
        if worker is not None:
            torch.set_num_threads(1)
        for number in range(first, self._stop, step):
            try:
                batch = self.batch(number)
            except ValueError as error:
                if worker is None:
                    raise
                yield error  # raised in a worker it would reach the user wrapped in a traceback; `_Loader` raises it
                return
            yield batch

    def batch(self, number: int) -> SSLBatch:
        """Batch `number` of this rank."""
        config = self._config
        images, crops = config.train.batch_size, config.crops
        channels = config.model.num_channels
        dtype = np.uint8 if channels == 3 else np.float32
        global_crops = np.empty((2, images, channels, crops.global_size, crops.global_size), dtype=dtype)
        local_crops = np.empty((crops.num_local, images, channels, crops.local_size, crops.local_size), dtype=dtype)
        colors = np.empty((2 + crops.num_local, images, len(Parameter)), dtype=np.float32)
        notes = _Notes()
        first = (number * self._world_size + self._rank) * images
        for slot in range(images):
            views, colors[:, slot] = self._views(first + slot, notes)
            for view, pixels in enumerate(views):
                target = global_crops[view] if view < 2 else local_crops[view - 2]
                target[slot] = pixels

        rng = np.random.default_rng([config.train.seed, _MASKS, number, self._rank])
        grid = (crops.global_size // config.model.stride,) * 2
        settings = Masks(*config.masks)  # an objective from outside may give the first two values only
        if number // config.train.gradient_accumulation_steps < round(settings.start_epoch * config.train.epoch_length):
            settings = Masks()
        masks = torch.from_numpy(draw_batch_masks(rng, 2 * images, grid, settings))
        indices, weights = SSLBatch.flatten_masks(masks)
        return SSLBatch(
            global_crops=torch.from_numpy(global_crops).flatten(0, 1),
            local_crops=torch.from_numpy(local_crops).flatten(0, 1),
            masks=masks,
            mask_indices=indices,
            mask_weights=weights,
            global_colors=torch.from_numpy(colors[:2]).flatten(0, 1),
            local_colors=torch.from_numpy(colors[2:]).flatten(0, 1),
            **vars(notes),
        )

    def _views(self, number: int, notes: _Notes) -> tuple[list[np.ndarray], np.ndarray]:
        """Crops and colours of sample `number`, or of the first readable one after it."""
        config = self._config
        sample = slot = self._source.read(number)
        # a single source keeps the numbers it has without any other
        key = [config.train.seed, _CROPS, slot.epoch, slot.index, *([slot.source] if slot.source else [])]
        for attempt in range(_MAX_BROKEN_IN_A_ROW):
            if attempt:
                sample = self._source.replacement(number, attempt)
            notes.broken += sample.broken
            rng = np.random.default_rng(key)
            try:
                image = self._crop.open(sample.data)
                crops = self._crop.cut(image, rng)
            except BrokenImage as error:
                notes.broken.append(Broken("image", sample.name, str(error)))
                continue
            if image.truncated:
                notes.broken.append(Broken.of_truncated(sample.name))
            if is_shallow(image, self._crop.decoding):
                notes.shallow.append(sample.name)
            return crops, draw_view_parameters(rng, config.colors, config.crops.num_local)
        last = "; ".join(map(str, notes.broken[-3:]))
        raise ValueError(
            f"{_MAX_BROKEN_IN_A_ROW} images in a row cannot be decoded, the last ones: {last}; "
            "check data.train.path and data.train.image_column"
        )


def build_loader(
    batches: TrainingBatches, num_workers: int, pin_memory: bool, start_method: str | None = None
) -> DataLoader:
    """A loader that gives `batches` in order, whatever the number of workers and how they are started."""
    return _Loader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context=start_method if num_workers else None,
        prefetch_factor=PREFETCH if num_workers else None,
        persistent_workers=False,
    )


class _Loader(WorkerLoader):
    """Raises what makes a worker end."""

    def __iter__(self) -> Iterator[SSLBatch]:  # type: ignore[override]
        return _raise_errors(super().__iter__())  # the workers start now, not with the first batch


def _raise_errors(batches: Iterator[SSLBatch | ValueError]) -> Iterator[SSLBatch]:
    for batch in batches:
        if isinstance(batch, ValueError):
            raise batch
        yield batch
