"""Images as probes are trained on them: random crops and flips, each drawn from `(seed, epoch, image)` alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.broken import leave_out
from ..data.crops import as_crop, draw_box, resample
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding, decoded, open_image
from ..data.transform import Size
from ..data.workers import WorkerLoader
from .base import Evaluation
from .datasets import LabeledImages

Draw = tuple[int, int]
"""A row of the source, -1 for padding, and the epoch that it is read in."""
_PADDING: Draw = (-1, 0)


class Draws:
    """An endless sequence of rows: one epoch after the other, each in an order of its own."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(count))

    def update(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs `[size]` of update `number`; the next one goes on from there."""
        positions = np.arange(number * size, (number + 1) * size)
        epochs, places = positions // self._count, positions % self._count
        rows = np.empty_like(places)
        for epoch in range(epochs[0], epochs[-1] + 1):
            rows[epochs == epoch] = self._order(epoch)[places[epochs == epoch]]
        return rows, epochs


class RandomCrops(Dataset):
    """Pixels `[C, *size]` and row of a draw; the row is -1 for padding and for what cannot be decoded."""

    def __init__(
        self,
        images: LabeledImages,
        size: Size,
        channels: int,
        scale: tuple[float, float],
        seed: int,
        decoding: Decoding = DEFAULT_DECODING,
    ) -> None:
        self._images, self._size, self._channels, self._scale, self._seed = images, size, channels, scale, seed
        self._decoding = decoding

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        row, epoch = draw
        if row >= 0:
            data, name = self._images.read(row)
            try:
                return self._crop(data, np.random.default_rng((self._seed, epoch, row))), row
            except BrokenImage as error:
                leave_out("image", name, error)
        return as_crop(torch.zeros(self._channels, *self._size, dtype=torch.uint8)), -1

    def _crop(self, data: bytes, rng: np.random.Generator) -> Tensor:
        image = open_image(data, self._channels, self._decoding)
        box = draw_box(rng, image.width, image.height, self._scale)
        flip = rng.random() < 0.5
        height, width = self._size
        reduction = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
        with decoded(image, reduction, self._decoding) as (pixels, whole):
            left, top, right, bottom = (side * whole for side in box)
            crop = as_crop(resample(pixels, (left, top, right, bottom), self._size))
        return crop.flip(2) if flip else crop.contiguous()


def augmented_updates(
    evaluation: Evaluation,
    images: LabeledImages,
    updates: range,
    global_batch: int,
    scale: tuple[float, float],
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """For each of `updates` this process's share of its images, in chunks of `config.batch_size`, to be used up.

    All processes get as many chunks of the same sizes. A chunk is normalised crops `[B, C, H, W]` on the device, and
    their rows `[B]`, which are -1 for what does not count.
    """
    config, transform, accelerator = evaluation.config, evaluation.transform, evaluation.accelerator
    plan = Plan(
        Draws(len(images), config.seed),
        updates,
        global_batch,
        config.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )
    crops = RandomCrops(images, transform.size, len(transform.mean), scale, config.seed, transform.decoding)
    loader = iter(WorkerLoader(crops, batch_sampler=plan, num_workers=config.num_workers))
    device = evaluation.backbone.device

    def chunk() -> tuple[Tensor, Tensor]:
        pixels, rows = next(loader)
        return transform.normalize(pixels.to(device, non_blocking=True)), rows.to(device)

    for _ in updates:
        yield (chunk() for _ in range(plan.chunks))


class Plan:
    """Which draws a process takes, chunk by chunk."""

    def __init__(self, draws: Draws, updates: range, global_batch: int, size: int, rank: int, world_size: int) -> None:
        self._draws, self._updates, self._global_batch = draws, updates, global_batch
        self._size, self._rank, self._world_size = size, rank, world_size
        self._share = -(-global_batch // world_size)
        self.chunks = -(-self._share // size)
        """In each update."""

    def __len__(self) -> int:
        return len(self._updates) * self.chunks

    def __iter__(self) -> Iterator[list[Draw]]:
        for number in self._updates:
            rows, epochs = self._draws.update(number, self._global_batch)
            mine = list(
                zip(rows[self._rank :: self._world_size].tolist(), epochs[self._rank :: self._world_size].tolist())
            )
            mine += [_PADDING] * (self._share - len(mine))
            yield from (mine[start : start + self._size] for start in range(0, self._share, self._size))
