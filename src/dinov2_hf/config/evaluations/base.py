"""What is common to the configurations of all evaluators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..checks import at_least, choice, positive
from ..data import SourceConfig
from ..paths import path_to


@dataclass
class EvaluationConfig:
    """The images and how they are read. Each evaluator adds its own keys."""

    recipes: ClassVar[str] = "evaluate"

    train: SourceConfig = field(default_factory=SourceConfig)
    """Images that a probe learns from, or that queries are compared with (`--data`)."""
    test: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Images that are evaluated (`--test`); default: the split `validation` of the same."""
    resize_size: int = 0
    """Short side in pixels to which images are resized; 0: as the preprocessor of the model says."""
    crop_size: int = 0
    """Side in pixels of the centre crop, a multiple of the patch; 0: as the preprocessor of the model says. Set without
    `resize_size`, images are resized to 256 / 224 of it, or to it where it is below 96."""
    precision: str = "auto"
    """Of the backbone: fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it, else fp32."""
    batch_size: int = 64
    """Images per process and forward of the backbone."""
    num_workers: int = 2
    """Processes that decode, for each process; 0 to do it in the process itself."""
    cache_dir: str | None = field(default=None, metadata=path_to("output"))
    """Folder where features are kept for the next evaluation of the same model and images (`--cache`)."""
    output_dir: str | None = field(default=None, metadata=path_to("output"))
    """Folder for `results.json`, `results.md` and what else the evaluator writes (`--output`)."""
    seed: int = 0
    """Everything random is drawn from it."""

    def check(self) -> EvaluationConfig:
        """Refuses impossible values.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        for name in ("resize_size", "crop_size", "num_workers", "seed"):
            at_least(name, getattr(self, name), 0)
        positive("batch_size", self.batch_size)
        return self
