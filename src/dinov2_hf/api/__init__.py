"""What one imports: train, export, extract features and evaluate from Python."""

from ..config import load_config
from .evaluation import evaluate
from .features import extract_features, load_backbone
from .run import Run, open_run
from .training import Training, distill, fit, pretrain

__all__ = [
    "Run",
    "Training",
    "distill",
    "evaluate",
    "extract_features",
    "fit",
    "load_backbone",
    "load_config",
    "open_run",
    "pretrain",
]
