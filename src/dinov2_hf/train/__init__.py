"""The accelerate-driven training loop and what it is made of."""

from .accelerator import build_accelerator
from .distill import Distiller
from .loop import PeriodicEvaluation, Pretrainer, Results
from .step import TrainingStep

__all__ = [
    "Distiller",
    "PeriodicEvaluation",
    "Pretrainer",
    "Results",
    "TrainingStep",
    "build_accelerator",
]
