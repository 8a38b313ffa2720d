"""A value for each pixel: classes and depths."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import at_least, choice, interval, named, positive, share
from ..data import SourceConfig
from .base import EvaluationConfig

DEPTH_HEADS = ("linear", "linear4", "dpt")
DPT_GRIDS = ("coarse", "fine")
EVAL_CROPS = ("none", "nyu", "eigen", "garg")


@dataclass
class DenseEvaluation(EvaluationConfig):
    """What is common: a head that learns from random crops, through the frozen backbone at every update.

    Features are not kept on disk. Maps are in `label_column` of the sources; without a name it is the column called
    annotation, mask, label_map, … or depth, depth_map, …
    """

    batch_size: int = 16
    """Crops, or windows of a test image, per process and forward of the backbone."""
    iterations: int = 40_000
    """Updates of the head."""
    global_batch: int = 16
    """Crops in an update, of all processes together."""
    learning_rate: float = 1e-3
    """Of AdamW, after the warm-up."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    warmup_iterations: int = 1500
    """Updates over which the learning rate rises."""
    photometric: bool = True
    """Random colours of the crops."""
    flip: bool = False
    """Average the prediction with that of the mirrored image."""

    def check(self) -> DenseEvaluation:
        super().check()
        for key in ("iterations", "global_batch", "learning_rate"):
            positive(key, getattr(self, key))
        for key in ("weight_decay", "warmup_iterations"):
            at_least(key, getattr(self, key), 0)
        if self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"warmup_iterations={self.warmup_iterations} is not below iterations={self.iterations}; use fewer"
            )
        return self


@dataclass
class SegmentationEvaluation(DenseEvaluation):
    """Semantic segmentation by batch normalisation and a linear layer on patches (DINOv2, section 7.4).

    The defaults are the published ones of "linear"; those of "+ms" are in configs/evaluate/segmentation_ms.yaml.
    """

    resize_size: int = 512
    """Short side in pixels to which images are resized (the long one to at most four times as much); 0: as they are.
    Published: 512, +ms 640."""
    crop_size: int = 512
    """Side in pixels of training crops and of the window that slides over test images; the next multiple of the patch
    is taken. Published: 512, +ms 640."""
    stride: int = 341
    """Pixels from one window to the next; published: 341, +ms 320."""
    blocks: int = 1
    """The patches of so many last blocks are concatenated; published: 1, +ms 4."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes of a test image, relative to `resize_size`, whose predictions are averaged; published: 1, +ms [1.0, 1.32,
    1.73, 2.28, 3.0], with `flip`."""
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """Smallest and largest size of a training image, relative to `resize_size`; published: 0.5 to 2, +ms 1 to 3."""
    max_class_share: float = 0.75
    """A training crop with more of one class is drawn again, up to ten times; published: 0.75."""
    num_classes: int = 0
    """Of the maps: values from 0; 0: as many as `classes`, or as the maps of `train` have, which are all read first."""
    classes: list[str] = field(default_factory=list)
    """Their names, in order; without them they are called by their numbers."""
    ignore_label: int = 255
    """Value of pixels that belong to no class and do not count."""
    reduce_zero_label: bool = False
    """0 is no class either, and 1 the first one, as in ADE20k."""

    def check(self) -> SegmentationEvaluation:
        super().check()
        for key in ("crop_size", "stride"):
            positive(key, getattr(self, key))
        if self.stride > self.crop_size:
            raise ValueError(
                f"stride={self.stride} leaves gaps between windows of crop_size={self.crop_size}; use less"
            )
        for key in ("blocks", "num_classes"):
            at_least(key, getattr(self, key), 1 if key == "blocks" else 0)
        if not self.scales:
            raise ValueError("scales=[] leaves nothing to predict; give [1.0], or several")
        for scale in self.scales:
            positive("scales", scale)
        interval("scale_range", self.scale_range, 0.01, 100)
        share("max_class_share", self.max_class_share)
        if self.num_classes == 1 or len(self.classes) == 1:
            raise ValueError("a map of one class has nothing to tell apart; give two or more")
        if self.classes and self.num_classes not in (0, len(self.classes)):
            raise ValueError(
                f"num_classes={self.num_classes} and {len(self.classes)} names in classes; leave one of them out"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={self.classes} has a name twice; give each class its own")
        return self


@dataclass
class DepthSourceConfig(SourceConfig):
    """Images with depth maps: 16-bit PNG files, `.npy` arrays or arrays in the table; 0 where nothing is known."""

    depth_scale: float = 0.001
    """Metres of one unit where the maps are whole numbers; 0.001 for NYU, 0.00390625 (1 / 256) for KITTI, 0.000125
    for SUN RGB-D. Maps of floats are in metres."""


@dataclass
class DepthTestConfig(DepthSourceConfig):
    """Images with depth maps that figures are of."""

    eval_crop: str = "none"
    """Part of the image that counts: none (all), nyu (Eigen's, rows 45 to 471 of 480 and columns 41 to 601 of 640),
    eigen or garg (those for KITTI). Published: nyu, garg, and none for SUN RGB-D."""


@dataclass
class DepthEvaluation(DenseEvaluation):
    """Monocular depth by a linear layer over bins or by a DPT decoder (DINOv2, section 7.4).

    The defaults are the published ones of NYU Depth v2; configs/evaluate/depth_kitti.yaml has those of KITTI.
    """

    train: DepthSourceConfig = field(default_factory=DepthSourceConfig)
    """Images that the head learns from (`--data`)."""
    test: DepthTestConfig = field(default_factory=lambda: DepthTestConfig(split="validation"))
    """Images that the figures are of (`--test`); default: the split `validation` of the same."""
    crop_size: int = 0
    """0: see `crop`."""
    iterations: int = 38_400
    """Updates of the head; published: 38,400."""
    learning_rate: float = 1e-4
    """Of AdamW, after the warm-up, then half a cosine to 0; published: 1e-4."""
    weight_decay: float = 0.01
    """Of AdamW; published: 0.01."""
    warmup_iterations: int = 12_800
    """Updates over which the learning rate rises; published: 12,800."""
    flip: bool = True
    """Average the prediction with that of the mirrored image; published: true."""
    head: str = "linear"
    """linear: the last block's patches and CLS, enlarged four times, and a linear layer over bins ("lin. 1"); linear4:
    of four blocks evenly through the network ("lin. 4"); dpt: the decoder of Ranftl et al. (2021) on these four."""
    min_depth: float = 0.001
    """Metres; published: 0.001. Less is no depth."""
    max_depth: float = 10.0
    """Metres; published: 10 for NYU, 80 for KITTI. More is no depth."""
    num_bins: int = 256
    """Of the linear heads, evenly from `min_depth` to `max_depth`; published: 256."""
    dpt_channels: int = 256
    """Of the decoder's fusion; published: 256."""
    dpt_grid: str = "coarse"
    """Of the decoder, where the number of patches is odd: resize the map of the finer block to twice the coarser map
    (coarse), or the coarser map to that of the finer block (fine, as up to release 0.5); published: coarse."""
    final_norm: bool = False
    """Whether heads take features after the final norm of the backbone (true, as up to release 0.5) or before it;
    published: false."""
    crop: list[int] = field(default_factory=lambda: [416, 544])
    """Height and width in pixels of training crops; the next multiples of the patch are taken. Published: 416 x 544
    for NYU, 352 x 704 for KITTI."""
    rotation: float = 2.5
    """Half of the training images are turned by up to so many degrees; published: 2.5."""
    brightness: float = 0.25
    """Colours: factor from [1 - b, 1 + b]; published: 0.25 for NYU, 0.1 for KITTI."""
    gradient_weight: float = 0.5
    """Of the gradient loss beside SigLoss; published: 0.5."""
    mean_iterations: int = 100
    """First updates, in which SigLoss is about the mean of an image alone; published: 100."""
    max_gradient_norm: float = 35.0
    """Longer gradients are shortened to it; published: 35."""
    median_scaling: bool = False
    """Scale each prediction by the ratio of medians, for depth up to scale; published: false."""
    transfer: dict[str, DepthTestConfig] = field(default_factory=dict)
    """Further test sets, each under a name of your own, without training on them: `transfer.sun.path=/my/sunrgbd`.
    Published: NYU to SUN RGB-D."""

    def check(self) -> DepthEvaluation:
        super().check()
        choice("head", self.head, DEPTH_HEADS)
        choice("dpt_grid", self.dpt_grid, DPT_GRIDS)
        if self.crop_size:
            raise ValueError(f"crop_size={self.crop_size}, but crops of depth have a height and a width; use crop")
        if len(self.crop) != 2:
            raise ValueError(f"crop={self.crop} is not [height, width]; published: [416, 544]")
        for key in ("min_depth", "max_depth", "dpt_channels", "max_gradient_norm"):
            positive(key, getattr(self, key))
        for side in self.crop:
            positive("crop", side)
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth={self.min_depth} is not below max_depth={self.max_depth}; give metres")
        at_least("num_bins", self.num_bins, 2)
        share("brightness", self.brightness, below_one=True)
        for key in ("gradient_weight", "mean_iterations", "rotation"):
            at_least(key, getattr(self, key), 0)
        positive("train.depth_scale", self.train.depth_scale)
        _check_test("test", self.test)
        for name, source in self.transfer.items():
            named("transfer", name)
            if not source.path:
                raise ValueError(f"transfer.{name}.path is not set; give the images: transfer.{name}.path=/my/{name}")
            _check_test(f"transfer.{name}", source)
        return self


def _check_test(key: str, source: DepthTestConfig) -> None:
    positive(f"{key}.depth_scale", source.depth_scale)
    choice(f"{key}.eval_crop", source.eval_crop, EVAL_CROPS)
