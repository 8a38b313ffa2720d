"""How it is trained: optimiser, length, evaluation during the run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .checks import at_least, choice, multiple_of_patch, positive, share
from .data import SourceConfig
from .paths import path_to


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
            positive(f"optim.{name}", getattr(self, name))
        for name in (
            "min_lr",
            "warmup_epochs",
            "weight_decay",
            "weight_decay_end",
            "clip_grad",
            "patch_embed_lr_mult",
            "freeze_last_layer_epochs",
        ):
            at_least(f"optim.{name}", getattr(self, name), 0)
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas={self.betas} has not 2 values; published: [0.9, 0.999]")
        for value in self.betas:
            share("optim.betas", value, below_one=True)


@dataclass
class TrainConfig:
    """Length, batch and output of the run."""

    output_dir: str = field(default="", metadata=path_to("output"))
    """Folder that takes checkpoints, logs, pictures and the exported model; default: `runs/NAME` of the config file
    (`runs/distill_NAME` of a distillation), without one `runs/OBJECTIVE`."""
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
    """Every how many-th checkpoint is also kept for good; 0 for none."""
    max_skipped_updates: int = 20
    """The run stops after this many updates in a row with a gradient that is not finite."""

    @property
    def num_steps(self) -> int:
        """Updates of the whole run."""
        return round(self.epochs * self.epoch_length)

    def check(self) -> None:
        if not self.output_dir:
            raise ValueError("train.output_dir is not set; give a folder: train.output_dir=runs/mine")
        choice("train.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        at_least("train.seed", self.seed, 0)
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
            positive(f"train.{name}", getattr(self, name))
        at_least("train.keep_every", self.keep_every, 0)
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
            positive(f"knn.{name}", getattr(self, name))
        multiple_of_patch("knn.crop_size", self.crop_size, patch_size)


@dataclass
class RunEvaluationConfig:
    """An evaluation of the teacher during the run, as `dinov2-hf evaluate` does it."""

    protocol: str = "linear"
    """Name of the evaluator; `dinov2-hf evaluate list` shows all."""
    config: str | None = field(default=None, metadata=path_to("file"))
    """YAML file of the evaluation, or the name of a recipe."""
    epochs: float = 10
    """Epochs between two of them; the start and the end always have one."""

    def check(self, name: str) -> None:
        if self.config is None:
            raise ValueError(f"evaluations.{name}.config is not set; give the YAML file of the evaluation")
        positive(f"evaluations.{name}.epochs", self.epochs)


@dataclass
class HubConfig:
    """Pushing what a run has learnt to the Hub while it goes on; off where `repo_id` is not set."""

    repo_id: str | None = None
    """`namespace/name`, made if it does not exist; a further student `NAME` goes to `namespace/name-NAME`. The access
    token is that of `HF_TOKEN` or of `hf auth login`."""
    private: bool | None = None
    """Of a repository that is made: true, false, or as the account has it by default."""
    push_every: float = 10
    """Epochs between two pushes; the end is always one."""

    def check(self) -> None:
        positive("hub.push_every", self.push_every)
        if self.repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id):
            raise ValueError(f"hub.repo_id={self.repo_id!r} is not a name on the Hub; write namespace/name")
