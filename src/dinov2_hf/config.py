"""Configuration of a run: typed sections; defaults < YAML file < dotted overrides (`optim.base_lr=1e-3`).

The defaults are the published ones (`ssl_default_config.yaml` and the paper's Appendix B) where the two agree on one.
Everything a user can get wrong is refused here, before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class ModelConfig:
    """The backbone."""

    preset: str = "large"
    """Architecture: tiny, small, base, large or giant."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    num_register_tokens: int = 4
    """Register tokens; 0 for none."""
    num_channels: int = 3
    """Channels of the images."""
    hidden_size: int | None = None
    """Width in place of the preset's."""
    num_hidden_layers: int | None = None
    """Depth in place of the preset's."""
    num_attention_heads: int | None = None
    """Heads in place of the preset's."""
    use_swiglu_ffn: bool | None = None
    """SwiGLU (true) or MLP (false) in place of the preset's."""
    layerscale_value: float = 1e-5
    """Initial LayerScale."""
    drop_path_rate: float = 0.3
    """Stochastic depth of the student, share of samples left out per layer."""
    drop_path_uniform: bool = True
    """The same rate in every layer, or a linear rise from 0."""
    attn_implementation: str = "auto"
    """sdpa, eager, flash_attention_2, flex_attention, xformers, or auto: eager on CPUs (faster there), else sdpa."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile each layer with torch.compile: faster steps after a start of a minute or more."""

    def check(self) -> None:
        _choice("model.preset", self.preset, ("tiny", "small", "base", "large", "giant"))
        _positive("model.patch_size", self.patch_size)
        _at_least("model.num_register_tokens", self.num_register_tokens, 0)
        _share("model.drop_path_rate", self.drop_path_rate, below_one=True)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) is not None:
                _positive(f"model.{name}", getattr(self, name))
        implementations = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention", "xformers")
        _choice("model.attn_implementation", self.attn_implementation, implementations)
        if self.num_channels != 3:
            raise ValueError(f"model.num_channels={self.num_channels}: training reads colour images; use 3")

    def architecture(self) -> dict[str, Any]:
        """The arguments of `Dinov2Config.preset` that this section sets, `preset` aside."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("preset", "gradient_checkpointing", "compile"):
            values.pop(name)
        return values


@dataclass
class InitConfig:
    """Where the weights start from; from scratch where `path` is not set."""

    path: str | None = None
    """A run's output folder or one of its checkpoints (student, teacher and heads go on), a model on the Hub or in a
    folder that transformers loads, one of our exports, or an original `.pth` file."""
    heads: bool = True
    """Take the heads too, where the source has them."""
    head_warmup_epochs: float = 1.0
    """Where heads start anew on a backbone that does not: epochs in which they alone are trained. The learning rate of
    the backbone then rises over `optim.warmup_epochs`."""

    def check(self) -> None:
        _at_least("init.head_warmup_epochs", self.head_warmup_epochs, 0)


@dataclass
class HeadConfig:
    """A projection head: MLP, bottleneck, prototypes."""

    num_prototypes: int = 65536
    """Outputs K."""
    hidden_dim: int = 2048
    """Width of the hidden layers."""
    bottleneck_dim: int = 256
    """Width before the prototypes."""
    num_layers: int = 3
    """Linear layers before the prototypes."""

    def check(self, section: str) -> None:
        for item in fields(HeadConfig):
            _positive(f"{section}.{item.name}", getattr(self, item.name))


@dataclass
class DinoConfig(HeadConfig):
    """The image-level objective and its head."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term off."""


@dataclass
class IbotConfig(HeadConfig):
    """The patch-level objective, its head and its masks."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term, and the masks, off."""
    separate_head: bool = False
    """A head of its own, with the sizes given here, or the DINO head."""
    mask_probability: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """Smallest and largest share of masked patches in a masked crop."""


@dataclass
class KoleoConfig:
    """The KoLeo regulariser on the student's CLS of each global view."""

    loss_weight: float = 0.1
    """Weight in the objective; 0 switches the term off."""
    distributed: bool = False
    """Look for the nearest neighbour in the batches of all processes; published: in that of one GPU."""


@dataclass
class TeacherConfig:
    """The teacher: targets and exponential moving average."""

    centering: str = "sinkhorn_knopp"
    """sinkhorn_knopp or softmax."""
    temp: float = 0.07
    """Temperature after the warm-up."""
    warmup_temp: float = 0.04
    """Temperature at the start."""
    warmup_temp_epochs: float = 30
    """Length of the straight line between the two, in epochs."""
    momentum: float = 0.992
    """EMA momentum at the start."""
    final_momentum: float = 1.0
    """EMA momentum at the end (cosine)."""
    student_temp: float = 0.1
    """Temperature of the student."""

    def check(self) -> None:
        _choice("teacher.centering", self.centering, ("sinkhorn_knopp", "softmax"))
        for name in ("temp", "warmup_temp", "student_temp"):
            _positive(f"teacher.{name}", getattr(self, name))
        _at_least("teacher.warmup_temp_epochs", self.warmup_temp_epochs, 0)
        _share("teacher.momentum", self.momentum)
        _share("teacher.final_momentum", self.final_momentum)


@dataclass
class CropsConfig:
    """Multi-crop geometry. Two global crops, seen by student and teacher, and local crops for the student."""

    global_size: int = 224
    """Side of a global crop in pixels, a multiple of the patch size."""
    local_size: int = 98
    """Side of a local crop in pixels, a multiple of the patch size."""
    num_local: int = 8
    """Local crops per image; 0 for none."""
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    """Smallest and largest share of the image's area in a global crop."""
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    """Smallest and largest share of the image's area in a local crop."""
    flip_probability: float = 0.5
    """Horizontal flip."""

    def check(self, patch_size: int) -> None:
        _at_least("crops.num_local", self.num_local, 0)
        _share("crops.flip_probability", self.flip_probability)
        _interval("crops.global_scale", self.global_scale, 0, 1)
        _interval("crops.local_scale", self.local_scale, 0, 1)
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            _positive(f"crops.{name}", size)
            _multiple_of_patch(f"crops.{name}", size, patch_size)


@dataclass
class ColorsConfig:
    """Photometric augmentation and normalisation."""

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

    def check(self) -> None:
        for name in ("jitter_probability", "grayscale_probability", "solarize_probability"):
            _share(f"colors.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            _share(f"colors.{name}", getattr(self, name))
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"colors.hue={self.hue} is not in [0, 0.5]; the colour circle is 1 around, published: 0.1")
        if len(self.blur_probability) != 3:
            raise ValueError(
                f"colors.blur_probability={self.blur_probability} has not 3 values; "
                "give those of global view 1, global view 2 and the local views"
            )
        for value in self.blur_probability:
            _share("colors.blur_probability", value)
        _interval("colors.blur_sigma", self.blur_sigma, 0, float("inf"))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"colors.{name}={values} has not 3 values; give one for each of R, G, B")
        if min(self.std) <= 0:
            raise ValueError(f"colors.std={self.std} has a value that is not positive; use that of your images")


@dataclass
class SourceConfig:
    """Where images come from: anything that `datasets` reads."""

    path: str | None = None
    """A folder of images, a folder or file of parquet, a saved `datasets` folder, or the name of a set on the Hub."""
    split: str = "train"
    """Split of the set."""
    name: str | None = None
    """Configuration of a set on the Hub that has several."""
    image_column: str | None = None
    """Column of the images; default: the first one of the type `Image`."""
    label_column: str | None = None
    """Column of the labels, where labels are needed; default: the first one of the type `ClassLabel`."""
    streaming: bool = False
    """Read in order through a shuffle buffer, without preparing the set first."""


@dataclass
class DataConfig:
    """Images to train on, and how they are read."""

    train: SourceConfig = field(default_factory=SourceConfig)
    """The images; labels are not used."""
    num_workers: int = 8
    """Processes that decode and crop, for each training process; 0 to do it in the training process."""
    shuffle_buffer: int = 10_000
    """Samples among which a streaming source is shuffled."""
    max_broken_share: float = 0.1
    """The run stops when more than this share of the images it has read cannot be decoded."""

    def check(self) -> None:
        if not self.train.path:
            raise ValueError("data.train.path is not set; give a folder of images: data.train.path=/my/images")
        _at_least("data.num_workers", self.num_workers, 0)
        _positive("data.shuffle_buffer", self.shuffle_buffer)
        _share("data.max_broken_share", self.max_broken_share)


@dataclass
class OptimConfig:
    """AdamW and its schedules."""

    base_lr: float = 0.004
    """Learning rate of a global batch of 1024; others get base_lr * sqrt(global_batch / 1024)."""
    min_lr: float = 1e-6
    """Learning rate at the end (cosine)."""
    warmup_epochs: float = 10
    """Straight rise of the learning rate from 0, in epochs."""
    weight_decay: float = 0.04
    """Weight decay at the start."""
    weight_decay_end: float = 0.4
    """Weight decay at the end (cosine)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's."""
    clip_grad: float = 3.0
    """Largest gradient norm of backbone, DINO head and iBOT head, each by itself; 0 for no clipping."""
    layerwise_decay: float = 0.9
    """Factor on the learning rate for each layer further from the output."""
    patch_embed_lr_mult: float = 0.2
    """Further factor on the learning rate of the patch embedding."""
    freeze_last_layer_epochs: float = 1
    """Epochs at the start in which the prototypes do not move."""

    def check(self) -> None:
        for name in ("base_lr", "layerwise_decay"):
            _positive(f"optim.{name}", getattr(self, name))
        for name in (
            "min_lr",
            "warmup_epochs",
            "weight_decay",
            "weight_decay_end",
            "clip_grad",
            "patch_embed_lr_mult",
            "freeze_last_layer_epochs",
        ):
            _at_least(f"optim.{name}", getattr(self, name), 0)
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas={self.betas} has not 2 values; published: [0.9, 0.999]")
        for value in self.betas:
            _share("optim.betas", value, below_one=True)


@dataclass
class TrainConfig:
    """Length, batch and output of the run."""

    output_dir: str = "runs/pretrain"
    """Folder that takes checkpoints, logs, pictures and the exported model."""
    seed: int = 0
    """Everything random is drawn from it."""
    batch_size: int = 64
    """Images per process and forward."""
    gradient_accumulation_steps: int = 1
    """Forwards per update; the global batch is batch_size * processes * this."""
    epochs: float = 100
    """Length of the run in epochs of `epoch_length` updates."""
    epoch_length: int = 1250
    """Updates that are called an epoch, whatever the size of the data set."""
    precision: str = "auto"
    """fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it, else fp32."""
    log_every: int = 10
    """Updates between two lines of metrics."""
    checkpoint_epochs: float = 1
    """Epochs between two checkpoints; the end is always one."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Every how many-th checkpoint is kept for good besides; 0 for none."""
    max_skipped_updates: int = 20
    """The run stops after this many updates in a row with a gradient that is not finite."""

    @property
    def num_steps(self) -> int:
        """Updates of the whole run."""
        return round(self.epochs * self.epoch_length)

    def check(self) -> None:
        _choice("train.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _at_least("train.seed", self.seed, 0)
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "epochs",
            "epoch_length",
            "log_every",
            "checkpoint_epochs",
            "keep_checkpoints",
            "max_skipped_updates",
        ):
            _positive(f"train.{name}", getattr(self, name))
        _at_least("train.keep_every", self.keep_every, 0)
        if self.num_steps < 1:
            raise ValueError(f"train.epochs={self.epochs} of {self.epoch_length} updates is no update at all; use more")


@dataclass
class KnnConfig:
    """Weighted k-nearest-neighbour accuracy of the teacher during the run; off where `reference.path` is not set."""

    reference: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images whose neighbours vote."""
    query: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Labelled images that are classified."""
    epochs: float = 5
    """Epochs between two evaluations; the start and the end always have one."""
    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """Of the votes' weights."""
    resize_size: int = 256
    """Short side in pixels to which images are resized."""
    crop_size: int = 224
    """Side in pixels of the centre crop, a multiple of the patch size."""
    batch_size: int = 64
    """Images per forward."""

    @property
    def enabled(self) -> bool:
        return bool(self.reference.path)

    def check(self, patch_size: int) -> None:
        if not self.enabled:
            return
        if not self.query.path:
            raise ValueError("knn.reference.path is set but knn.query.path is not; give both, or neither")
        for name in ("epochs", "k", "temperature", "resize_size", "crop_size", "batch_size"):
            _positive(f"knn.{name}", getattr(self, name))
        _multiple_of_patch("knn.crop_size", self.crop_size, patch_size)


@dataclass
class PretrainConfig:
    """A pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    koleo: KoleoConfig = field(default_factory=KoleoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    colors: ColorsConfig = field(default_factory=ColorsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)

    def check(self) -> PretrainConfig:
        """Refuses impossible values and combinations.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        self.model.check()
        self.init.check()
        self.dino.check("dino")
        self.ibot.check("ibot")
        self.teacher.check()
        self.crops.check(self.model.patch_size)
        self.colors.check()
        self.data.check()
        self.optim.check()
        self.train.check()
        self.knn.check(self.model.patch_size)
        for name in ("dino", "ibot", "koleo"):
            _at_least(f"{name}.loss_weight", getattr(self, name).loss_weight, 0)
        if self.dino.loss_weight == self.ibot.loss_weight == 0:
            raise ValueError(
                "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on"
            )
        _interval("ibot.mask_ratio", self.ibot.mask_ratio, 0, 1)
        _share("ibot.mask_probability", self.ibot.mask_probability)
        if self.koleo.loss_weight and self.train.batch_size < 2:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} leaves KoLeo without neighbours; "
                "use 2 or more, or koleo.loss_weight=0"
            )
        return self


def load_config(path: str | PathLike | None = None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The checked configuration: defaults, then the YAML file at `path`, then dotted `key=value` overrides.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), a value of the wrong type, an impossible
            value or combination.
        FileNotFoundError: no file at `path`.
    """
    merged = OmegaConf.structured(PretrainConfig)
    layers: list[tuple[str, Any]] = []
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"config file {str(path)!r} does not exist")
        try:
            layers.append((str(path), OmegaConf.load(path)))
        except (yaml.YAMLError, OSError, OmegaConfBaseException) as error:
            raise ValueError(f"{path} is not a YAML file of sections and keys: {error}") from None
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", override):
            raise ValueError(f"{override!r} is not an override; write section.key=value, such as optim.base_lr=1e-3")
    layers.append(("the command line", OmegaConf.from_dotlist(list(overrides))))
    known = list(dotted_keys(PretrainConfig()))
    for origin, layer in layers:
        given = OmegaConf.to_container(layer)
        if not isinstance(given, dict):
            raise ValueError(f"{origin} does not hold sections of keys; see configs/pretrain/quickstart.yaml")
        _refuse_unknown(given, known, origin)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            reason, key = str(error).splitlines()[0], error.full_key or "config"
            value = OmegaConf.select(layer, key, default=None) if error.full_key else None
            raise ValueError(f"{key} in {origin}: {reason} (given: {value!r})") from None
    return OmegaConf.to_object(merged).check()


def dotted_keys(config: Any, prefix: str = "") -> Iterable[str]:
    """The keys of all values under `config`, such as `optim.base_lr`."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from dotted_keys(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def value_at(config: Any, key: str) -> Any:
    """The value of the dotted `key`."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def save_config(config: PretrainConfig, path: str | PathLike) -> None:
    """Writes every value as YAML that `load_config` reads back."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _refuse_unknown(given: dict, known: list[str], origin: str, prefix: str = "") -> None:
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in sections:
            if not isinstance(value, dict):
                inside = ", ".join(other for other in known if other.startswith(f"{key}."))
                raise ValueError(f"{key}={value!r} in {origin}: {key} is a section; set one of {inside}")
            _refuse_unknown(value, known, origin, f"{key}.")
        elif key not in known:
            candidates = known + sorted(sections)
            near = difflib.get_close_matches(key, candidates, n=1) or [
                other for other in candidates if other.rsplit(".", 1)[-1] == str(name)
            ]
            hint = f"; did you mean {near[0]}?" if near else f"; known sections: {', '.join(sorted(sections))}"
            raise ValueError(f"{key} in {origin} is not a config key{hint}")


def _choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(choices)}")


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key}={value} is not positive; use a value above 0")


def _at_least(key: str, value: float, lowest: float) -> None:
    if not value >= lowest:
        raise ValueError(f"{key}={value} is below {lowest}; use {lowest} or more")


def _share(key: str, value: float, below_one: bool = False) -> None:
    if not (0 <= value < 1 if below_one else 0 <= value <= 1):
        raise ValueError(f"{key}={value} is not in [0, 1{')' if below_one else ']'}; it is a share")


def _interval(key: str, value: Sequence[float], lowest: float, highest: float) -> None:
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest or value[1] == 0:
        raise ValueError(f"{key}={list(value)} is not [smallest, largest] within [{lowest}, {highest}]")


def _multiple_of_patch(key: str, size: int, patch_size: int) -> None:
    if size % patch_size:
        below, above = size // patch_size * patch_size, (size // patch_size + 1) * patch_size
        remedy = f"use {below} or {above}" if below else f"use {above}"
        raise ValueError(f"{key}={size} is not a multiple of model.patch_size={patch_size}; {remedy}")
