"""Third stage: a vector of length 1 in float16 for every image, by any backbone.

Its units are shards: tasks of an executor, or the processes of `accelerate launch`, take them each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import IterableDataset, get_worker_info

from ..data import EvalTransform
from ..data.decode import BrokenImage
from ..data.workers import WorkerLoader
from ..features import FeatureExtractor
from .collections import Shard
from .stage import Context, Stage
from .tables import Vectors, image_ids, num_rows, positions_of, read_column, read_table, write_vectors

OpenModel = Callable[[str, torch.device, torch.dtype, str], FeatureExtractor]
"""From a path, a device, a dtype and what messages call the path, to the backbone."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WEIGHTS = (".safetensors", ".json", ".pth", ".onnx", ".yaml")


class EmbedStage(Stage):
    """Embeds a collection: the pool's images that `kept` left, or all of a seed or evaluation set.

    Args:
        key: section of the configuration, `embed` or `concepts`.
        kept: None for a collection of which nothing was dropped.
        pictures: the stage that holds images that hooks have changed.
    """

    embeds = True

    def __init__(
        self,
        name: str,
        context: Context,
        collection: str,
        key: str,
        open_model: OpenModel,
        kept: Stage | None = None,
        pictures: Stage | None = None,
    ) -> None:
        super().__init__(name, context, [kept] if kept else [])
        self.collection, self.key, self.config = collection, key, getattr(context.config, key)
        self._open_model, self._kept, self._pictures = open_model, kept, pictures

    @property
    def settings(self) -> dict:
        config = self.config
        own = {name: getattr(config, name) for name in ("part", "resize_size", "crop_size", "precision")}
        own["model"] = [config.model, *_files_of(config.model)]
        return own if self._kept else own | {"images": self.context.collections[self.collection].fingerprint}

    def steps(self) -> dict[str, int]:
        return {"embed": len(self.context.collections[self.collection].shards)}

    def backbone(self) -> FeatureExtractor:
        """The model, opened once a process.

        Raises:
            FileNotFoundError, ValueError: it cannot be read, or features of it cannot be had at this size.
        """
        return _opened(self._open_model, self.config.model, self.config.precision, f"{self.key}.model")

    def transform(self) -> EvalTransform:
        """How its images are prepared."""
        backbone = self.backbone()
        transform = backbone.transform
        resize = self.config.resize_size or transform.resize_size
        short = resize if isinstance(resize, int) else min(resize)
        crop = self.config.crop_size or transform.crop_size
        if not self.config.crop_size and isinstance(crop, int) and short:
            crop = min(crop, short)
        found = replace(transform, resize_size=resize, crop_size=crop)
        if any(side % backbone.stride or side > (short or side) for side in found.size):
            fits = max((short or max(found.size)) // backbone.stride, 1) * backbone.stride
            raise ValueError(
                f"{self.key}.crop_size={crop} is not a multiple of the model's patch of {backbone.stride} pixels "
                f"within resize_size={resize}; use {fits}"
            )
        return found

    def do(self, step: str, unit: int) -> None:
        backbone, transform, config = self.backbone(), self.transform(), self.config
        shard, wanted, changed = self.context.collections[self.collection].shards[unit], None, {}
        if self._kept:
            wanted = positions_of(read_column(self._kept.part(unit), "id"))
        if self._pictures:
            changed = replacements(self._pictures, unit)
        reader = _Reader(shard, wanted, changed, transform)
        places, features = [np.empty(0, np.int64)], [np.empty((0, backbone.width), np.float32)]
        for pixels, rows in WorkerLoader(reader, config.batch_size, num_workers=config.num_workers):
            with torch.no_grad():
                cls, patches = backbone.features(transform.normalize(pixels.to(backbone.device)), 1)[-1]
            features.append((cls if config.part == "cls" else patches.mean(dim=(2, 3))).float().cpu().numpy())
            places.append(rows.numpy())
        positions, vectors = np.concatenate(places), np.concatenate(features)
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(lengths).all() or not lengths.all():
            name = self.config.model
            raise ValueError(f"{self.key}.model={name} gives vectors without direction; try {self.key}.precision=fp32")
        order = np.argsort(positions)
        write_vectors(self.part(unit), image_ids(unit, positions[order]), (vectors / lengths[:, None])[order])

    def summary(self) -> dict:
        kept = sum(num_rows(self.part(unit)) for unit in range(self.steps()["embed"]))
        if not kept:
            raise ValueError(f"{self.collection} has no image that can be decoded; see {self.collection}.path")
        return {"kept": kept, "width": Vectors([(self.part(0), self.part(0))]).width}


class _Reader(IterableDataset):
    """Pixels and position of the images of a shard; each data worker decodes its share of them."""

    def __init__(
        self, shard: Shard, positions: np.ndarray | None, changed: dict[int, bytes], transform: EvalTransform
    ) -> None:
        self._shard, self._positions, self._changed, self._transform = shard, positions, changed, transform

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        positions = self._positions
        if positions is None and self._shard.count is not None:
            positions = np.arange(self._shard.count)
        if positions is not None:
            positions, number, count = positions[number::count], 0, 1
        for turn, (position, data, _) in enumerate(self._shard.read(positions)):
            if turn % count != number:
                continue
            try:
                yield self._transform.pixels(self._changed.get(position, data)), position
            except BrokenImage:  # the filter has counted those of the pool
                continue


def replacements(filtered: Stage, unit: int) -> dict[int, bytes]:
    """By position in a shard, the images that hooks have changed."""
    if not filtered.context.config.filter.hooks:
        return {}
    table = read_table(filtered.part(unit), ["id", "replacement"])
    table = table.filter(table["replacement"].is_valid())
    return dict(zip(positions_of(table["id"].to_numpy()).tolist(), table["replacement"].to_pylist()))


def process_state() -> PartialState:
    """This process among those that were launched, and its device."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)  # which would not form a group of processes without a GPU otherwise


@lru_cache(maxsize=1)
def _opened(open_model: OpenModel, model: str, precision: str, name: str) -> FeatureExtractor:
    return open_model(model, process_state().device, _DTYPES[precision], name)


def _files_of(model: str) -> list[list]:
    """Names, sizes and times of what a path holds, by which another model under the same path is noticed."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _WEIGHTS)
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
