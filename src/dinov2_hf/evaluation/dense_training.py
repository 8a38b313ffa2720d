"""Training of a head on random crops of images and their maps, the same for any number of processes.

Axes: `B` crops, `C` channels, `H` x `W` pixels, `P` parameters of colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from ..data.broken import leave_out
from ..data.crops import as_crop, resample
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding
from ..data.photometric import as_unit
from ..data.workers import WorkerLoader
from .augmented import Draw, Draws, Plan
from .base import Evaluation
from .datasets import DenseImages, common_grid
from .dense_heads import DenseHead
from .dense_prediction import Size, block_features, scaled_size, size_of

_TRIES = 10
"""Crops that are drawn before one of few classes is taken."""
Loss = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Scores `[B, K, H, W]`, maps `[B, H, W]` and the number of the update, to a sum and what it is to be divided by."""


@dataclass(frozen=True)
class CropRecipe:
    """How training crops are made."""

    size: Size
    """Of a crop; smaller images are padded below and to the right."""
    resize_size: int = 0
    """Short side to which images are resized, the long one to at most four times as much; 0: as they are."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Random factor on that."""
    rotation: float = 0.0
    """Half of the images are turned by up to so many degrees."""
    max_class_share: float = 1.0
    """A crop with more of one class is drawn again, up to ten times; 1 to take any."""
    draw_colors: Callable[[np.random.Generator], np.ndarray] | None = None
    """Parameters of colours `[P]`."""
    apply_colors: Callable[[Tensor, Tensor], Tensor] | None = None
    """Images `[B, C, H, W]` in [0, 1] and their parameters `[B, P]` to images in other colours."""


class RandomMapCrops(Dataset):
    """Pixels `[C, H, W]`, map `[H, W]`, colours `[P]` and whether the draw counts: not padding, nor broken.

    All that is random is drawn from `(seed, epoch, row)`. A `ValueError` comes back as it is: raised in a worker it
    would arrive with a traceback for a message.

    Args:
        mean: colour of what is padded, in [0, 1].
    """

    def __init__(
        self,
        images: DenseImages,
        recipe: CropRecipe,
        mean: Sequence[float],
        seed: int,
        decoding: Decoding = DEFAULT_DECODING,
    ) -> None:
        self._images, self._recipe, self._seed, self._decoding = images, recipe, seed, decoding
        self._mean = torch.tensor(mean).view(-1, 1, 1)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor, bool] | ValueError:
        row, epoch = draw
        pixels, values, counts = None, None, row >= 0
        rng = np.random.default_rng((self._seed, epoch, max(row, 0)))
        if counts:
            try:
                pixels, values = self.cut(*self._images.sample(row, len(self._mean), self._decoding), rng)
            except BrokenImage as error:
                leave_out("image", f"row {row} of {self._images.where}", error)
                counts = False
            except ValueError as error:
                return error
        crop, target = self._filled(pixels, values)
        draw_colors = self._recipe.draw_colors
        colors = torch.from_numpy(draw_colors(rng).astype(np.float32)) if draw_colors else torch.zeros(0)
        return crop, target, colors, counts

    def cut(self, pixels: Tensor, values: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """A random part of an image and of its map, at most as large as a crop, resized and perhaps mirrored."""
        recipe = self._recipe
        if recipe.rotation and rng.random() < 0.5:
            pixels, values = turned(pixels, values, rng.uniform(-recipe.rotation, recipe.rotation), self._images.void)
        size, shared = size_of(pixels), common_grid(size_of(pixels), (values.shape[0], values.shape[1]))
        assert shared is not None  # `DenseImages` refuses others
        grid, fine, map_fine = shared
        # of one size for the whole image, so that pixels stay square
        resized = scaled_size(size, recipe.resize_size, rng.uniform(*recipe.scale_range))
        height, width = (min(side, whole) for side, whole in zip(recipe.size, resized))
        shape = height, width
        # in whole pixels of the coarser of image and map, so that the two stay on each other
        box = [min(max(round(side * of / to), 1), of) for side, of, to in zip(shape, grid, resized)]
        for _ in range(_TRIES):
            top, left = (int(rng.integers(0, of - side + 1)) for side, of in zip(box, grid))
            rows, columns = (
                (start * map_fine + (np.arange(side) + 0.5) * taken * map_fine / side).astype(int)
                for start, side, taken in zip((top, left), shape, box)
            )
            part = values[rows][:, columns]
            if recipe.max_class_share >= 1 or _mixed(part, recipe.max_class_share):
                break
        edges = left * fine, top * fine, (left + box[1]) * fine, (top + box[0]) * fine
        crop = as_crop(resample(pixels, edges, shape))
        return (crop.flip(2), part[:, ::-1]) if rng.random() < 0.5 else (crop, part)

    def _filled(self, pixels: Tensor | None, values: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """A crop of full size with the part at its top left; `pixels` None for nothing."""
        recipe, mean = self._recipe, self._mean
        crop = (mean * 255).round().to(torch.uint8) if len(mean) == 3 else mean
        crop = crop.expand(-1, *recipe.size).clone()
        target = torch.full(recipe.size, self._images.void)
        if pixels is not None:
            height, width = pixels.shape[1:]
            crop[:, :height, :width] = pixels
            target[:height, :width] = torch.from_numpy(np.ascontiguousarray(values))
        return crop, target


def turned(pixels: Tensor, values: np.ndarray, degrees: float, void: float) -> tuple[Tensor, np.ndarray]:
    """An image `[C, H, W]` and its map `[h, w]`, turned clockwise around their centre; what comes in is black, or void.

    Pixels are mixed, values of the map are not.
    """
    image = _turned(pixels.float(), degrees, "bilinear")
    image = image.round().to(torch.uint8) if pixels.dtype == torch.uint8 else image
    map = _turned(torch.from_numpy(values)[None].float() - void, degrees, "nearest") + void
    return image, map[0].numpy().astype(values.dtype)


def _turned(values: Tensor, degrees: float, mode: str) -> Tensor:
    height, width = values.shape[1:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # from where each pixel comes, on axes from -1 to 1 in both directions
    matrix = [[cosine, sine * height / width, 0.0], [-sine * width / height, cosine, 0.0]]
    grid = nn.functional.affine_grid(torch.tensor([matrix]), [1, 1, height, width], align_corners=False)
    return nn.functional.grid_sample(values[None], grid, mode=mode, align_corners=False)[0]


def _mixed(labels: np.ndarray, most: float) -> bool:
    """Whether there are several classes, none with more than `most` of the pixels that have one."""
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    return len(counts) > 1 and counts.max() / counts.sum() <= most


def map_updates(
    evaluation: Evaluation, images: DenseImages, recipe: CropRecipe
) -> Iterator[Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """For each update this process's share of its crops, in chunks of `config.batch_size`, to be used up.

    A chunk is normalised crops `[B, C, H, W]`, maps `[B, H, W]` and which of them count `[B]`, on the device. All
    processes get as many chunks of the same sizes.
    """
    config, backbone, accelerator = evaluation.config, evaluation.backbone, evaluation.accelerator
    plan = Plan(
        Draws(len(images), config.seed),
        range(config.iterations),
        config.global_batch,
        config.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )
    crops = RandomMapCrops(images, recipe, backbone.transform.mean, config.seed, backbone.transform.decoding)
    loader = iter(WorkerLoader(crops, batch_sampler=plan, num_workers=config.num_workers, collate_fn=_collate))

    def chunk() -> tuple[Tensor, Tensor, Tensor]:
        batch = next(loader)
        if isinstance(batch, ValueError):
            raise batch
        pixels, targets, colors, counts = (part.to(backbone.device, non_blocking=True) for part in batch)
        pixels = as_unit(pixels)
        if recipe.draw_colors:
            assert recipe.apply_colors is not None
            pixels = recipe.apply_colors(pixels, colors)
        return backbone.transform.normalize(pixels), targets, counts

    for _ in range(config.iterations):
        yield (chunk() for _ in range(plan.chunks))


def _collate(samples: list) -> list[Tensor] | ValueError:
    refused = next((sample for sample in samples if isinstance(sample, ValueError)), None)
    return refused or default_collate(samples)


def train_head(
    evaluation: Evaluation,
    head: DenseHead,
    images: DenseImages,
    recipe: CropRecipe,
    loss: Loss,
    schedule: Callable[[int], float],
    max_gradient_norm: float = math.inf,
) -> None:
    """Trains a head with AdamW: `schedule(update)` is its learning rate. Collective.

    Raises:
        ValueError: a map that cannot be used, or a head that diverged.
    """
    config, backbone = evaluation.config, evaluation.backbone
    head.to(backbone.device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=config.weight_decay)
    updates, known = map_updates(evaluation, images, recipe), torch.zeros((), device=backbone.device)
    for update, chunks in enumerate(evaluation.progress(updates, f"Head on {images.kind}s", config.iterations)):
        batch = [(block_features(backbone, head.meta, pixels), targets, counts) for pixels, targets, counts in chunks]
        head.observe(
            [features for features, _, _ in batch], torch.cat([part[2] for part in batch]), evaluation.accelerator
        )
        divisor = torch.zeros((), device=backbone.device)
        for features, targets, counts in batch:
            targets = torch.where(counts.view(-1, 1, 1), targets, images.void)
            scores = nn.functional.interpolate(head(features), recipe.size, mode="bilinear")
            total, part = loss(scores, targets, update)
            total.backward()
            divisor += part
        known += _share_gradients(head, divisor, evaluation.accelerator)
        nn.utils.clip_grad_norm_(head.parameters(), max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule(update)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not known:
        raise ValueError(
            f"no {images.kind} of {images.where} has a pixel to learn from; look at the maps and their keys"
        )
    if not all(bool(parameter.isfinite().all()) for parameter in head.parameters()):
        raise ValueError(f"the head diverged with learning_rate={config.learning_rate}; use a lower one")


def warmed_up(update: int, rate: float, warmup: int, first: float) -> float:
    """The learning rate `rate` of `update`, from 0, in the course of a warm-up from `first` times as much."""
    return rate * (1 - (1 - update / warmup) * (1 - first)) if update < warmup else rate


def _share_gradients(head: nn.Module, divisor: Tensor, accelerator: Accelerator) -> Tensor:
    """Sums gradients and divisors over the processes, divides the ones by the other, and gives the latter."""
    gradients = [cast(Tensor, parameter.grad) for parameter in head.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [divisor.view(1)])
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(flat, reduction="sum")
    mean = flat[:-1] / flat[-1].clamp(min=1)
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))
    return flat[-1]
