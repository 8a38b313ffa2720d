"""How it is trained: optimiser, length, evaluation during the run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

from .checks import at_least, choice, multiple_of_patch, positive, share, usual_share
from .data import SourceConfig
from .paths import path_to


@dataclass
class OptimConfig:
    """The optimiser and its schedules."""

    optimizer: str = "adamw"
    """adamw, sgd or lars (SGD whose learning rate follows the norm of each matrix, for large batches)."""
    lr: float | None = None
    """Learning rate after the warm-up, whatever the batch; in place of `base_lr` and `lr_rule`."""
    base_lr: float | None = 0.004
    """Learning rate of the global batch that `lr_rule` names; not set where `lr` is."""
    lr_rule: str = "sqrt"
    """How the learning rate grows with the global batch: sqrt, base_lr * sqrt(global_batch / 1024), or linear,
    base_lr * global_batch / 256."""
    min_lr: float = 1e-6
    """Learning rate at the end (cosine)."""
    warmup_epochs: float = field(default=10, metadata=usual_share("10%"))
    """Straight rise of the learning rate from 0, in epochs or as a share of the run: `10%`."""
    weight_decay: float = 0.04
    """Weight decay at the start."""
    weight_decay_end: float = 0.4
    """Weight decay at the end (cosine)."""
    betas: list[float] | None = None
    """Of adamw, which only reads them; default: [0.9, 0.999]."""
    momentum: float | None = None
    """Of sgd and lars, which only read it; default: 0.9."""
    clip_grad: float = 3.0
    """Largest norm of the gradient of what `clip_by` names; 0 for no clipping."""
    clip_by: str = "network"
    """What is clipped by itself: network (backbone, DINO head, iBOT head), or parameter (each tensor)."""
    layerwise_decay: float = 0.9
    """Factor on the learning rate for each layer further from the output."""
    patch_embed_lr_mult: float = 0.2
    """Further factor on the learning rate of the patch embedding."""
    freeze_last_layer_epochs: float = field(default=1, metadata=usual_share("1%"))
    """Epochs at the start, or share of the run, in which the prototypes do not move."""
    freeze_last_layer_by: str = "learning_rate"
    """What keeps them: learning_rate (0, while the optimiser gathers their moments), or gradients (dropped, so that
    the optimiser does not see them)."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that only some optimisers read, those that this one reads, with their defaults."""
        if self.optimizer == "adamw":
            return {"betas": [0.9, 0.999] if self.betas is None else self.betas}
        return {"momentum": 0.9 if self.momentum is None else self.momentum}

    def peak_lr(self, global_batch_size: int) -> float:
        """The learning rate after the warm-up, with the images of all processes and accumulated gradients."""
        if self.base_lr is None:
            return cast(float, self.lr)
        linear = self.lr_rule == "linear"
        return self.base_lr * (global_batch_size / 256 if linear else (global_batch_size / 1024) ** 0.5)

    @property
    def lr_key(self) -> str:
        """The key that sets the learning rate, for messages."""
        return "optim.lr" if self.base_lr is None else "optim.base_lr"

    def check(self) -> None:
        """Refuses impossible values and those that the optimiser does not read; sets its defaults."""
        choice("optim.optimizer", self.optimizer, ("adamw", "sgd", "lars"))
        choice("optim.lr_rule", self.lr_rule, ("sqrt", "linear"))
        choice("optim.clip_by", self.clip_by, ("network", "parameter"))
        choice("optim.freeze_last_layer_by", self.freeze_last_layer_by, ("learning_rate", "gradients"))
        for name, readers in (("betas", "adamw"), ("momentum", "sgd or lars")):
            value = getattr(self, name)
            if name not in self.settings and value is not None:
                raise ValueError(
                    f"optim.{name}={value} is not read by optim.optimizer={self.optimizer}; leave it out, or set "
                    f"optim.optimizer={readers}"
                )
        for name, value in self.settings.items():
            setattr(self, name, value)
        if self.lr is None and self.base_lr is None:
            raise ValueError("optim.base_lr and optim.lr are not set; give one of them")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError(
                f"optim.lr={self.lr} and optim.base_lr={self.base_lr} are both set; set one of them to None"
            )
        positive(self.lr_key, cast(float, self.lr if self.base_lr is None else self.base_lr))
        positive("optim.layerwise_decay", self.layerwise_decay)
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
        if self.betas is not None:
            if len(self.betas) != 2:
                raise ValueError(f"optim.betas={self.betas} has not 2 values; published: [0.9, 0.999]")
            for value in self.betas:
                share("optim.betas", value, below_one=True)
        if self.momentum is not None:
            share("optim.momentum", self.momentum, below_one=True)


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
    student: bool = False
    """Measure the student too, beside the teacher: `knn_accuracy/student`."""
    epochs: float = 5
    """Epochs between two evaluations; the start and the end always have one."""
    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """Of the votes' weights."""
    resize_size: int = 0
    """Short side in pixels to which images are resized; 0: as the exported model, 256 / 224 of its crops, or the whole
    short side for crops below 96 pixels."""
    crop_size: int = 0
    """Side in pixels of the centre crop, a multiple of the patch size; 0: `crops.global_size`, as exported."""
    batch_size: int = 64
    """Images per forward."""

    @property
    def enabled(self) -> bool:
        return bool(self.reference.path)

    def check(self, patch_size: int, of: str = "") -> None:
        if not self.enabled:
            return
        if not self.query.path:
            raise ValueError("knn.reference.path is set but knn.query.path is not; give both, or neither")
        for name in ("epochs", "k", "temperature", "batch_size"):
            positive(f"knn.{name}", getattr(self, name))
        for name in ("resize_size", "crop_size"):
            at_least(f"knn.{name}", getattr(self, name), 0)
        multiple_of_patch("knn.crop_size", self.crop_size, patch_size, of)


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
