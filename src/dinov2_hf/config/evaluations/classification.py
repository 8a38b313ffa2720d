"""Linear and logistic probes, fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import at_least, choice, interval, named, positive, share
from ..data import SourceConfig
from .base import EvaluationConfig

METRICS = ("auto", "accuracy", "mean_per_class_accuracy", "mean_average_precision")
POOLING = ("cls", "cls_mean")


@dataclass
class LinearEvaluation(EvaluationConfig):
    """Linear classifiers on frozen features, trained side by side, the best one counts (DINOv2, appendix B.3)."""

    validation: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Images that the best head is chosen on; without a path it is chosen on the test set, as published."""
    metric: str = "auto"
    """Figure: accuracy, mean_per_class_accuracy, mean_average_precision (several labels an image), or auto: accuracy,
    or mean_average_precision where images have several labels."""
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    )
    """Of the heads, for a batch of 256: each is multiplied by global_batch / 256; published: these 13."""
    blocks: list[int] = field(default_factory=lambda: [1, 4])
    """Heads take the CLS tokens of so many last blocks; published: 1 and 4."""
    pooling: list[str] = field(default_factory=lambda: ["cls", "cls_mean"])
    """Heads take CLS alone (cls), or the mean of the last block's patches besides (cls_mean); published: both."""
    iterations: int = 12_500
    """Updates of the heads; published: 12,500."""
    global_batch: int = 1024
    """Images in an update, of all processes together; published: 128 on each of 8 GPUs."""
    augment: bool = False
    """Random crops and flips, through the backbone at every update, as published; false: the features of the
    centre crops, computed once."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Smallest and largest share of the image's area in a random crop; published: 0.08 to 1."""

    def check(self) -> LinearEvaluation:
        super().check()
        choice("metric", self.metric, METRICS)
        for key in ("learning_rates", "blocks", "pooling"):
            if not getattr(self, key):
                raise ValueError(f"{key}=[] leaves no head to train; give at least one value")
        for rate in self.learning_rates:
            positive("learning_rates", rate)
        for count in self.blocks:
            at_least("blocks", count, 1)
        for pooling in self.pooling:
            choice("pooling", pooling, POOLING)
        positive("iterations", self.iterations)
        positive("global_batch", self.global_batch)
        interval("crop_scale", self.crop_scale, 0, 1)
        return self


@dataclass
class LogisticConfig(EvaluationConfig):
    """What is common to logistic regression on one set and on many."""

    c: list[float] = field(default_factory=lambda: [10 ** (-6 + 11 * step / 44) for step in range(45)])
    """Inverse strengths of the L2 penalty to choose from; published: 45 from 1e-6 to 1e5, evenly in the exponent."""
    max_iterations: int = 1000
    """Of L-BFGS for each of them; published: 1,000."""

    def check(self) -> LogisticConfig:
        super().check()
        if not self.c:
            raise ValueError("c=[] leaves nothing to choose from; give inverse strengths, such as c=[0.1,1,10]")
        for value in self.c:
            positive("c", value)
        positive("max_iterations", self.max_iterations)
        return self


@dataclass
class LogisticEvaluation(LogisticConfig):
    """Logistic regression on CLS, its penalty chosen on held-out images (DINOv2, section 7.2)."""

    validation: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Images that the penalty is chosen on, then learnt from too; without a path a random tenth of `train`."""
    metric: str = "auto"
    """Figure: accuracy, mean_per_class_accuracy, mean_average_precision (several labels an image), or auto: accuracy,
    or mean_average_precision where images have several labels."""

    def check(self) -> LogisticEvaluation:
        super().check()
        choice("metric", self.metric, METRICS)
        return self


@dataclass
class LabeledSetConfig:
    """One of several sets."""

    train: SourceConfig = field(default_factory=SourceConfig)
    """Images to learn from."""
    validation: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Images that the penalty is chosen on, then learnt from too; without a path a random tenth of `train`."""
    test: SourceConfig = field(default_factory=lambda: SourceConfig(split="test"))
    """Images that the figure is of; without a path that of `train`."""
    metric: str = "auto"
    """Figure: accuracy, mean_per_class_accuracy, mean_average_precision (several labels an image), or auto."""


@dataclass
class FineGrainedEvaluation(LogisticConfig):
    """Logistic regression on several sets, and the mean of their figures (DINOv2, section 7.2, table 8).

    The sets are those of `sets`; `train` and `test` stay empty.
    """

    sets: dict[str, LabeledSetConfig] = field(default_factory=dict)
    """The sets, each under a name of your own: `sets.pets.train.path=/my/pets sets.pets.test.split=test`."""

    def check(self) -> FineGrainedEvaluation:
        super().check()
        if self.train.path or self.test.path:
            key = "train" if self.train.path else "test"
            raise ValueError(
                f"{key}.path={getattr(self, key).path!r} belongs to no set; give it as sets.NAME.{key}.path, "
                "without --data and --test"
            )
        if not self.sets:
            raise ValueError("sets is empty; give sets, such as sets.pets.train.path=/my/pets")
        for name, each in self.sets.items():
            named("sets", name)
            if not each.train.path:
                raise ValueError(
                    f"sets.{name}.train.path is not set; give its images: sets.{name}.train.path=/my/images"
                )
            choice(f"sets.{name}.metric", each.metric, METRICS)
        return self


@dataclass
class FinetuneEvaluation(EvaluationConfig):
    """The whole backbone and a linear head, trained on the labels (DINOv2, section 7.1, table 5)."""

    metric: str = "auto"
    """Figure: accuracy, mean_per_class_accuracy, mean_average_precision (several labels an image), or auto: accuracy,
    or mean_average_precision where images have several labels."""
    epochs: int = 50
    """Passes over the images; DeiT III: 50."""
    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises from 0; DeiT III: 5."""
    global_batch: int = 512
    """Images in an update, of all processes together; a process takes its share in forwards of batch_size. DeiT III:
    512."""
    learning_rate: float = 5e-4
    """Of the head for a batch of 512, scaled with global_batch / 512; blocks have less, see layer_decay."""
    layer_decay: float = 0.65
    """Factor on the learning rate of each block relative to the one above it; BEiT: 0.65."""
    weight_decay: float = 0.05
    """Of matrices; biases, norms and LayerScale have none. BEiT: 0.05, DeiT III: 0.1."""
    drop_path_rate: float = 0.1
    """Stochastic depth, for models of this package and `facebook/dinov2-*`; others keep what their config says."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes; none where images have several labels."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Smallest and largest share of the image's area in a random crop."""

    def check(self) -> FinetuneEvaluation:
        super().check()
        choice("metric", self.metric, METRICS)
        for key in ("epochs", "global_batch", "learning_rate", "layer_decay"):
            positive(key, getattr(self, key))
        share("layer_decay", self.layer_decay)
        for key in ("warmup_epochs", "weight_decay"):
            at_least(key, getattr(self, key), 0)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} is not below epochs={self.epochs}; use fewer")
        for key in ("drop_path_rate", "label_smoothing"):
            share(key, getattr(self, key), below_one=True)
        interval("crop_scale", self.crop_scale, 0, 1)
        return self
