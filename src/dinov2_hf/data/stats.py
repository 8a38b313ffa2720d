"""What a source holds: sizes, broken files, mean and deviation of the pixels, and how fast it can be read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..config import RunConfig
from .broken import Broken
from .crops import MultiCrop, as_crop
from .decode import SHALLOW_BITS, BrokenImage, Decoding, decoded, is_shallow
from .photometric import as_unit, draw_view_parameters
from .sources.base import TrainingSource
from .sources.lanes import RUN
from .sources.training import open_training_source
from .workers import WorkerLoader

_PART = 16


@dataclass
class SourceStatistics:
    """Of the images that were read."""

    num_images: int = 0
    """Read without an error."""
    broken: list[Broken] = field(default_factory=list)
    """Names and reasons of the others."""
    num_shards: int = 0
    """Of streams."""
    broken_shards: list[Broken] = field(default_factory=list)
    """Those that cannot be read to their end."""
    truncated: list[Broken] = field(default_factory=list)
    """Those that were read though they lack their last bytes."""
    deep: int = 0
    """Images of 16 bits."""
    shallow: int = 0
    """Images of 16 bits that use 12 or fewer."""
    largest: int = 0
    """The largest value in an image of 16 bits."""
    complete: bool = False
    """Whether these are all images of the source."""
    num_bytes: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each, upright."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Per channel, of values in [0, 1]; every image counts the same, whatever its size."""
    read_seconds: float = 0.0
    crop_seconds: float = 0.0
    """Spent by all workers in reading bytes, and in making crops of them."""
    seconds: float = 0.0
    """From start to end."""


@dataclass
class _Part:
    """What a worker found in a few images."""

    broken: list[Broken]
    repeated: int
    """Samples that are no longer of the first pass."""
    stand_ins: int
    """Samples of the first pass in the place of others, which broken shards have lost."""
    num_bytes: list[int]
    sizes: list[tuple[int, int]]
    truncated: list[Broken]
    largest: list[int | None]
    """Of each image of 16 bits the largest value, where it is known."""
    shallow: int
    moments: list[np.ndarray]
    read_seconds: float
    crop_seconds: float


class _Parts(Dataset):
    def __init__(self, source: TrainingSource, config: RunConfig, num_images: int) -> None:
        self._source, self._config, self._num_images = source, config, num_images

    def __len__(self) -> int:
        return -(-self._num_images // _PART)

    def __getitem__(self, index: int) -> _Part:
        config, channels = self._config, self._config.model.num_channels
        decoding = Decoding.of(config.data)
        crop = MultiCrop(config.crops, channels, decoding)
        part = _Part([], 0, 0, [], [], [], [], 0, [], 0.0, 0.0)
        for number in range(index * _PART, min((index + 1) * _PART, self._num_images)):
            start = time.perf_counter()
            sample = self._source.read(number)
            part.read_seconds += time.perf_counter() - start
            part.broken += sample.broken
            if sample.epoch > 0:
                part.repeated += 1
                continue
            if sample.repeated:
                part.stand_ins += 1
                continue
            rng = np.random.default_rng([config.train.seed, number])
            start = time.perf_counter()
            try:
                crop(sample.data, rng)
                draw_view_parameters(rng, config.colors, config.crops.num_local)
                part.crop_seconds += time.perf_counter() - start
                image = crop.open(sample.data)
                reduction = max(min(image.width, image.height) / config.crops.global_size, 1)
                with decoded(image, reduction, decoding) as (pixels, _):
                    part.moments.append(_moments(pixels))
            except BrokenImage as error:
                part.broken.append(Broken("image", sample.name, str(error)))
                continue
            if image.truncated:
                part.truncated.append(Broken.of_truncated(sample.name))
            if image.bits == 16:
                part.largest.append(image.largest)
                part.shallow += is_shallow(image, decoding)
            part.num_bytes.append(len(sample.data))
            part.sizes.append((image.width, image.height))
        return part


def _moments(pixels: Tensor) -> np.ndarray:
    """Means and mean squares of the channels of `pixels` `[C, h, w]`, in [0, 1]: `[2, C]`."""
    values = as_unit(as_crop(pixels)).double().flatten(1).numpy()
    return np.stack((values.mean(axis=1), np.square(values).mean(axis=1)))


def measure_source(config: RunConfig, num_images: int, num_workers: int) -> SourceStatistics:
    """Reads `num_images` images as training would, or all where there are fewer.

    Raises:
        ValueError: nothing can be read, with the last reason.
    """
    source = open_training_source(config.data, config.train.seed)
    parts = _Parts(source, config, num_images)
    loader = WorkerLoader(parts, batch_size=None, num_workers=num_workers)
    found, moments, repeated = SourceStatistics(num_shards=source.num_shards), [], 0
    shards: dict[str, Broken] = {}
    enough = 2 * RUN * source.lanes  # lanes of unequal length end one after the other
    start = time.perf_counter()
    with tqdm(total=num_images, desc="Reading", unit="img") as progress:
        for part in loader:
            found.broken += [item for item in part.broken if item.kind == "image"]
            shards |= {item.name: item for item in part.broken if item.kind == "shard"}  # a worker each may find it
            found.num_bytes += part.num_bytes
            found.sizes += part.sizes
            found.truncated += part.truncated
            found.deep += len(part.largest)
            found.shallow += part.shallow
            found.largest = max([found.largest, *(value for value in part.largest if value is not None)])
            found.read_seconds += part.read_seconds
            found.crop_seconds += part.crop_seconds
            moments += part.moments
            progress.update(len(part.sizes) + len(part.broken))
            repeated = 0 if part.sizes or part.broken or part.stand_ins else repeated + part.repeated
            if repeated > enough:
                found.complete = True
                break
    found.seconds = time.perf_counter() - start
    found.num_images, found.broken_shards = len(found.sizes), list(shards.values())
    if not found.num_images:
        raise ValueError(f"none of {len(found.broken)} images can be decoded; the last: {found.broken[-1]}")
    mean, square = np.mean(moments, axis=0)
    found.mean, found.std = mean, np.sqrt(np.maximum(square - mean**2, 0))
    return found


def describe(found: SourceStatistics, config: RunConfig, num_workers: int) -> str:
    """The report that a person reads, with the config lines to use at the end."""
    sizes = np.array(found.sizes)
    short = sizes.min(axis=1)
    total = found.num_images + len(found.broken)
    lines = [
        f"{found.num_images:,} images read"
        + (", all there are" if found.complete else ", drawn at random; --images reads more"),
        f"broken       {len(found.broken)} ({len(found.broken) / total:.1%})",
    ]
    lines += _some(found.broken)
    if found.num_shards:
        lines += [f"broken files {len(found.broken_shards)} of {found.num_shards}", *_some(found.broken_shards)]
    if config.data.truncated_jpegs:
        lines.append(f"truncated    {len(found.truncated)} JPEG files lack their last bytes and were read")
    lines += _describe_depth(found, config)

    def spread(values: np.ndarray) -> str:
        return ", ".join(
            f"{name} {value:,.0f}"
            for name, value in zip(("smallest", "median", "largest"), np.quantile(values, (0, 0.5, 1)))
        )

    lines += [
        f"width        {spread(sizes[:, 0])}",
        f"height       {spread(sizes[:, 1])}",
        f"short side   {spread(short)}; {(short < config.crops.global_size).mean():.0%} below "
        f"crops.global_size={config.crops.global_size}, which are enlarged",
        f"kilobytes    {spread(np.array(found.num_bytes) / 1000)}",
        f"reading      {total / max(found.read_seconds, 1e-9):,.0f} images/s for each worker",
        f"cropping     {found.num_images / max(found.crop_seconds, 1e-9):,.0f} images/s for each worker, "
        f"2 x {config.crops.global_size} + {config.crops.num_local} x {config.crops.local_size} pixels",
        f"together     {total / found.seconds:,.0f} images/s with {num_workers} workers, these statistics included",
        "",
        "Config lines:",
        "",
    ]
    if config.model.num_channels != 3:
        lines += ["model:", f"  num_channels: {config.model.num_channels}"]
    lines += ["colors:"] + [
        f"  {name}: [{', '.join(f'{value:.4f}' for value in values)}]"
        for name, values in (("mean", found.mean), ("std", found.std))
    ]
    return "\n".join(lines)


def _some(items: list[Broken]) -> list[str]:
    """Lines of a report."""
    more = [f"{' ' * 13}and {len(items) - 10} more"] if len(items) > 10 else []
    return [f"{' ' * 13}{item}" for item in items[:10]] + more


def _describe_depth(found: SourceStatistics, config: RunConfig) -> list[str]:
    """What is said of images of 16 bits."""
    if not found.deep:
        return []
    kept = "keep their upper 8" if config.model.num_channels == 3 else "keep all of them"
    bits = config.data.bits
    lines = [
        f"16 bits      {found.deep:,} images ({found.deep / found.num_images:.0%}) have 16 bits a channel and {kept}"
        + (f", scaled by data.bits={bits}" if bits != 16 else "")
    ]
    if config.model.num_channels == 3:
        lines.append("             stock pipelines clip grey ones to white; open them with dinov2_hf.data.load_image")
    used = max(found.largest.bit_length(), 8)
    if bits == 16 and found.shallow:
        lines.append(
            f"             {found.shallow:,} of them use 12 bits or fewer and are nearly black; "
            + (
                f"the others use up to {used}: shift the values of the former"
                if used > SHALLOW_BITS
                else f"set data.bits={SHALLOW_BITS}, or what the camera has; the largest value is {found.largest:,}"
            )
        )
    return lines
