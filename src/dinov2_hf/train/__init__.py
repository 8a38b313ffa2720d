"""The accelerate-driven training loop and what it is made of."""

from .accelerator import build_accelerator
from .loop import Pretrainer
from .metrics import plot_metrics, read_metrics
from .step import TrainingStep

__all__ = ["Pretrainer", "TrainingStep", "build_accelerator", "plot_metrics", "read_metrics"]
