"""The accelerate-driven training loop and what it is made of."""

from .accelerator import build_accelerator
from .build import build_objective
from .callbacks import Callback, Results, StudentFeatures
from .fit import Trainer
from .step import TrainingStep

__all__ = [
    "Callback",
    "Results",
    "StudentFeatures",
    "Trainer",
    "TrainingStep",
    "build_accelerator",
    "build_objective",
]
