"""What it is trained on: crops, colours, sources."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .checks import at_least, choice, interval, multiple_of_patch, named, positive, share
from .paths import path_to


@dataclass
class CropsConfig:
    """Multi-crop geometry. Two global crops, seen by student and teacher, and local crops for the student."""

    global_size: int = 224
    """Side of a global crop in pixels, a multiple of the patch size."""
    local_size: int = 98
    """Side of a local crop in pixels, a multiple of the patch size; of no matter where there are none."""
    num_local: int = 8
    """Local crops per image; 0 for none."""
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    """Smallest and largest share of the image's area in a global crop."""
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    """Smallest and largest share of the image's area in a local crop."""
    flip_probability: float = 0.5
    """Horizontal flip."""

    def check(self, patch_size: int, of: str = "") -> None:
        at_least("crops.num_local", self.num_local, 0)
        share("crops.flip_probability", self.flip_probability)
        interval("crops.global_scale", self.global_scale, 0, 1)
        interval("crops.local_scale", self.local_scale, 0, 1)
        for name, count in (("global_size", 2), ("local_size", self.num_local)):
            size = getattr(self, name)
            positive(f"crops.{name}", size)
            if count:
                multiple_of_patch(f"crops.{name}", size, patch_size, of)


@dataclass
class ColorsConfig:
    """Photometric augmentation and normalisation. Saturation, hue and grayscale are for images of 3 channels alone."""

    jitter_probability: float = 0.8
    """Colour jitter: brightness, contrast, saturation and hue in random order."""
    brightness: float = 0.4
    """Factor from [1 - b, 1 + b]."""
    contrast: float = 0.4
    """Factor from [1 - c, 1 + c]."""
    saturation: float = 0.2
    """Factor from [1 - s, 1 + s]."""
    hue: float = 0.1
    """Shift from [-h, h] of the colour circle."""
    grayscale_probability: float = 0.2
    """Loss of colour."""
    blur_probability: list[float] = field(default_factory=lambda: [0.0, 0.9, 0.5])
    """Gaussian blur in global view 1, global view 2 and local views, as in the published code (docs/fidelity.md)."""
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])
    """Smallest and largest standard deviation of the blur in pixels."""
    solarize_probability: float = 0.2
    """Solarisation above 128 in global view 2."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Mean per channel that is subtracted, of values in [0, 1]."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Standard deviation per channel that is divided by."""

    def check(self, num_channels: int) -> None:
        for name in ("jitter_probability", "grayscale_probability", "solarize_probability"):
            share(f"colors.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            share(f"colors.{name}", getattr(self, name))
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"colors.hue={self.hue} is not in [0, 0.5]; the colour circle is 1 around, published: 0.1")
        if len(self.blur_probability) != 3:
            raise ValueError(
                f"colors.blur_probability={self.blur_probability} has not 3 values; "
                "give those of global view 1, global view 2 and the local views"
            )
        for value in self.blur_probability:
            share("colors.blur_probability", value)
        interval("colors.blur_sigma", self.blur_sigma, 0, float("inf"))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != num_channels or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"colors.{name}={values} has not {num_channels} values, one for each of model.num_channels; "
                    "`dinov2-hf data stats` measures them"
                )
        if min(self.std) <= 0:
            raise ValueError(f"colors.std={self.std} has a value that is not positive; use that of your images")


@dataclass
class SourceConfig:
    """Where images come from: anything that `datasets` reads."""

    path: str | None = field(default=None, metadata=path_to("images"))
    """A folder of images or of tables, a file (.parquet, .arrow, .tar, .csv, .json, .jsonl, .zip, an image, or a .txt
    of paths), a pattern such as `/data/**/*.jpg`, a set saved with `save_to_disk`, the name of a set on the Hub, or
    `generator:NAME` of a Python generator (docs/data.md)."""
    split: str = "train"
    """Split of the set; files named by themselves are `train`."""
    split_folders: bool | None = None
    """Whether sub-folders called train, val, validation or test are splits; default: they are if no other sub-folder
    holds images and none lie beside them. Set: what lies elsewhere is left out (true), or all is one set (false)."""
    name: str | None = None
    """Configuration of a set on the Hub that has several."""
    image_column: str | None = None
    """Column of the images: encoded, as bytes, paths or URLs; default: the one that looks like it."""
    label_column: str | None = None
    """Column of the labels, where labels are needed; default: the first one of the type `ClassLabel`."""
    streaming: bool = False
    """Read the files one after the other through a shuffle buffer, without preparing the set first."""


@dataclass
class TrainingSourceConfig(SourceConfig):
    """Images to train on, alone or mixed with those of other sources."""

    weight: float = 1.0
    """Share of the samples in a mixture, relative to the weights of the other sources."""


@dataclass
class DataConfig:
    """Images to train on, and how they are read."""

    train: TrainingSourceConfig = field(default_factory=TrainingSourceConfig)
    """The images; labels are not used."""
    mix: dict[str, TrainingSourceConfig] = field(default_factory=dict)
    """Further sources, each under a name of your own: `data.mix.web.path=/my/web data.mix.web.weight=2`."""
    shuffle: bool = True
    """A new random order in every epoch of the data; false for the order of the source."""
    num_workers: int = 8
    """Processes that decode and crop, for each training process; 0 to do it in the training process."""
    start_method: str | None = None
    """How they are started: fork, spawn or forkserver; default: as Python does it on the platform."""
    shuffle_buffer: int = 10_000
    """Samples of a streaming source that are held to be shuffled, in all its lanes together."""
    lanes: int = 0
    """Lanes into which the files of streaming sources are divided, see docs/data.md; 0 for automatic."""
    max_broken_share: float = 0.1
    """The run stops when more than this share of the images it has read cannot be decoded."""
    max_broken_shards: float = 0.1
    """The run stops when more than this share of the shards (files) of streams cannot be read to their end; one of
    several always may be broken, unless it is 0."""
    bits: int = 16
    """Bits that 16-bit pictures and arrays use, 8 to 16: for 12, the value 4,095 is white. `dinov2-hf data stats` says
    where fewer than 16 are used."""
    truncated_jpegs: bool = False
    """Read JPEG files that lack their last bytes, where 7/8 of the rows are complete; libjpeg fills the rest."""
    max_pixels: int = 178_956_970
    """Images of more pixels count as broken. Of arrays, each three values of a pixel count as one pixel."""
    pixel_budget: int = 400_000_000
    """Pixels of large images (above 4 million decoded pixels) that all data workers on a machine decode at the same
    time; a pixel takes about 7 bytes. Others wait. It changes no sample."""

    def check(self) -> None:
        if not self.train.path:
            raise ValueError("data.train.path is not set; give a folder of images: data.train.path=/my/images")
        at_least("data.num_workers", self.num_workers, 0)
        if self.start_method is not None:
            choice("data.start_method", self.start_method, ("fork", "spawn", "forkserver"))
        positive("data.shuffle_buffer", self.shuffle_buffer)
        at_least("data.lanes", self.lanes, 0)
        share("data.max_broken_share", self.max_broken_share)
        share("data.max_broken_shards", self.max_broken_shards)
        if not 8 <= self.bits <= 16:
            raise ValueError(
                f"data.bits={self.bits} is not in [8, 16]; use the bits of the camera or scanner, such as 12"
            )
        positive("data.max_pixels", self.max_pixels)
        positive("data.pixel_budget", self.pixel_budget)
        positive("data.train.weight", self.train.weight)
        for name, source in self.mix.items():
            named("data.mix", name)
            if not source.path:
                raise ValueError(
                    f"data.mix.{name}.path is not set; give a folder of images: data.mix.{name}.path=/more"
                )
            positive(f"data.mix.{name}.weight", source.weight)
