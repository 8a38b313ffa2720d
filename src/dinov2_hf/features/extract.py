"""Frozen features of images, extracted by all processes together, and kept on disk where that is asked for.

Axes: `N` images, `L` blocks (the last one last), `D` width, `h`, `w` rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.broken import Broken, leave_out
from ..data.crops import as_crop
from ..data.decode import BrokenImage
from ..data.shared_memory import PREFETCH, check_shared_memory
from ..data.workers import WorkerLoader
from .cache import FeatureCache
from .extractor import FeatureExtractor

PARTS = ("cls", "mean", "gem", "patches")
_BLOCK_BYTES = 256 << 20  # of features that are gathered, and written, at a time
GEM_POWER, _GEM_FLOOR = 3.0, 1e-6


class Images(Protocol):
    """A collection of encoded images."""

    @property
    def fingerprint(self) -> str | None:
        """Of their bytes and order, so that features can be kept on disk; None: they are not."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        ...


class Transform(Protocol):
    """From encoded images to what a backbone takes; its `repr` tells it from all others."""

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def pixels(self, data: bytes) -> np.ndarray:
        """`[C, *size]`.

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        ...

    def normalize(self, pixels: Tensor) -> Tensor: ...


@dataclass
class FeatureSet:
    """Features of the readable images, in the order of the source, the same on every process."""

    index: Tensor
    """Their rows in the source, `[N]`."""
    parts: dict[str, Tensor]
    """`cls`, `mean` (of the patches) and `gem` (generalised mean), each `[N, L, D]`, and `patches`
    `[N, L, D, h, w]`: those that were asked for."""
    names: list[str] = field(default_factory=list)
    """Paths, or how else a person finds the images; filled by `dinov2_hf.extract_features` only."""
    broken: list[Broken] = field(default_factory=list)
    """The images that were left out; filled by `dinov2_hf.extract_features` only."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: str) -> Tensor:
        """A part of the features of the last block: `[N, D]`, or `[N, D, h, w]` for `patches`."""
        return self.parts[part][:, -1]


@torch.no_grad()
def gather_features(
    backbone: FeatureExtractor,
    images: Images,
    transform: Transform,
    accelerator: Accelerator,
    *,
    layers: int = 1,
    parts: Sequence[str] = ("cls",),
    batch_size: int = 64,
    num_workers: int = 0,
    cache: Path | None = None,
    dtype: torch.dtype = torch.float32,
    gem_power: float = GEM_POWER,
    description: str = "Features",
) -> FeatureSet:
    """Features of every image that can be decoded; those that cannot are named in the log. Collective.

    Args:
        layers: the last so many blocks.
        parts: which features, out of `PARTS`.
        batch_size: images per process and forward.
        num_workers: processes that decode, for each process; 0 to do it in the process itself.
        cache: a folder, the same for all processes, where features are looked for and left: a run that was killed
            continues, and the next evaluation of the same network, images and transform reads them. Nothing is
            left where the network or the images have no fingerprint.
        dtype: of the features.
        gem_power: of the generalised mean, the part `gem`.

    Raises:
        ValueError: a part that does not exist, or more workers than shared memory has room for.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"parts={sorted(unknown)} is none of {', '.join(PARTS)}")
    folder, block_size = None, _block_size(backbone, transform, layers, parts, dtype)
    if cache is not None and backbone.fingerprint and images.fingerprint:
        key = {
            "backbone": backbone.fingerprint(),
            "images": images.fingerprint,
            "count": len(images),
            "transform": repr(transform),
            "layers": layers,
            "parts": sorted(parts),
            "dtype": str(dtype),
            "shard": block_size,
        }
        if "gem" in parts and gem_power != GEM_POWER:  # which keys of earlier releases do not have
            key["gem_power"] = gem_power
        folder = FeatureCache(cache, key)
    blocks = [range(start, min(start + block_size, len(images))) for start in range(0, len(images), block_size)]
    missing = _missing(folder, len(blocks), accelerator)
    reader = _Reader(images, transform)
    share = [_batches(blocks[number], batch_size, accelerator) for number in missing]
    total = sum(map(len, share))
    height, width = transform.size
    size = batch_size * len(transform.mean) * height * width * (1 if len(transform.mean) == 3 else 4)
    check_shared_memory(size, num_workers, total, "num_workers")
    loader = WorkerLoader(
        reader,
        batch_sampler=list(chain.from_iterable(share)),
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=backbone.device.type == "cuda",  # copies then do not block, and the host runs ahead of the device
    )
    progress = tqdm(loader, description, total, leave=False, disable=not accelerator.is_main_process)
    batches, found = iter(progress), {}
    for number, plan in zip(missing, share):
        loaded = (next(batches) for _ in plan)
        measured = [
            _measure(backbone, transform, layers, parts, dtype, pixels, index, gem_power) for pixels, index in loaded
        ]
        rows = _gather(measured, accelerator)
        if folder is None:
            found[number] = rows
        elif accelerator.is_main_process:
            folder.write(number, {name: tensor.cpu() for name, tensor in rows.items()})
    progress.close()
    if folder is not None:
        accelerator.wait_for_everyone()
        found = {number: folder.read(number) for number in range(len(blocks))}
        if accelerator.is_main_process:
            cached = sorted(set(range(len(blocks))) - set(missing))
            for row in chain.from_iterable(sorted({*blocks[n]} - {*found[n]["index"].tolist()}) for n in cached):
                reader[row]  # left out when its block was made; it is named every time
    names = ("index", *parts)
    whole = {name: torch.cat([found[n][name] for n in range(len(blocks))]).to(accelerator.device) for name in names}
    return FeatureSet(whole.pop("index"), whole)


def _block_size(backbone, transform, layers: int, parts: Sequence[str], dtype: torch.dtype) -> int:
    """Images whose features are gathered, and written, at a time: whatever the batches and processes."""
    vectors = len(set(parts) - {"patches"})
    if "patches" in parts:
        height, width = transform.size
        vectors += (height // backbone.stride) * (width // backbone.stride)
    return max(_BLOCK_BYTES // (layers * backbone.width * dtype.itemsize * vectors), 1)


def _missing(folder: FeatureCache | None, count: int, accelerator: Accelerator) -> list[int]:
    """The blocks that are not on disk yet, as the main process sees it. Collective."""
    if folder is None:
        return list(range(count))
    missing = [[number for number in range(count) if not folder.has(number)] if accelerator.is_main_process else None]
    return broadcast_object_list(missing)[0]


def _batches(block: range, batch_size: int, accelerator: Accelerator) -> list[list[int]]:
    """The rows of a block that a process reads, batch by batch; all have the same number, padded with -1."""
    world_size = accelerator.num_processes
    mine = list(block[accelerator.process_index :: world_size])
    mine += [-1] * (-(-len(block) // world_size) - len(mine))
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


class _Reader(Dataset):
    """Pixels and row of an image; the row is -1 for padding and for what cannot be decoded."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row >= 0:
            data, name = self._images.read(row)
            try:
                return torch.from_numpy(np.ascontiguousarray(self._transform.pixels(data))), row
            except BrokenImage as error:
                leave_out("image", name, error)
        return as_crop(torch.zeros(len(self._transform.mean), *self._transform.size, dtype=torch.uint8)), -1


def _measure(
    backbone, transform, layers, parts, dtype, pixels: Tensor, index: Tensor, gem_power: float = GEM_POWER
) -> dict[str, Tensor]:
    """The features of a batch and its rows, on the device."""
    outputs = backbone.features(transform.normalize(pixels.to(backbone.device, non_blocking=True)), layers)
    found: dict[str, list[Tensor]] = {part: [] for part in parts}
    for cls, patches in outputs:
        for part, values in found.items():
            if part == "cls":
                values.append(cls)
            elif part == "mean":
                values.append(patches.mean(dim=(2, 3)))
            elif part == "gem":
                powers = patches.clamp(min=_GEM_FLOOR) ** gem_power
                values.append(powers.mean(dim=(2, 3)) ** (1 / gem_power))
            else:
                values.append(patches)
    measured = {part: torch.stack(values, dim=1).to(dtype) for part, values in found.items()}
    return {"index": index.to(backbone.device, non_blocking=True)} | measured


def _gather(batches: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, Tensor]:
    """The rows of all processes in order, without padding. Collective."""
    gathered = {name: accelerator.gather(torch.cat([batch[name] for batch in batches])) for name in batches[0]}
    order = torch.argsort(gathered["index"])
    order = order[gathered["index"][order] >= 0]
    return {name: values[order] for name, values in gathered.items()}
