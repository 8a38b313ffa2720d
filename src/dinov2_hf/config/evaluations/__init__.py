"""The configuration of each evaluator."""

import warnings
from typing import Any

from .base import EvaluationConfig
from .classification import (
    FineGrainedEvaluation,
    FinetuneEvaluation,
    LabeledSetConfig,
    LinearEvaluation,
    LogisticConfig,
    LogisticEvaluation,
)
from .dense import DepthEvaluation, DepthSourceConfig, DepthTestConfig, SegmentationEvaluation
from .knn import KnnEvaluation
from .retrieval import CopyDetectionEvaluation, RetrievalEvaluation
from .robustness import RobustnessEvaluation
from .video import PropagationEvaluation, VideoEvaluation

__all__ = [
    "CopyDetectionEvaluation",
    "DepthEvaluation",
    "DepthSourceConfig",
    "DepthTestConfig",
    "EvaluationConfig",
    "FineGrainedEvaluation",
    "FinetuneEvaluation",
    "KnnEvaluation",
    "LabeledSetConfig",
    "LinearEvaluation",
    "LogisticConfig",
    "LogisticEvaluation",
    "PropagationEvaluation",
    "RetrievalEvaluation",
    "RobustnessEvaluation",
    "SegmentationEvaluation",
    "VideoEvaluation",
    "evaluation_config",
]


def evaluation_config(name: str) -> type[EvaluationConfig] | None:
    """Returns the configuration of an evaluator of this package, such as `KnnEvaluation` for `knn`; None of others."""
    kind = globals().get(f"{name.title().replace('_', '')}Evaluation")
    return kind if isinstance(kind, type) and issubclass(kind, EvaluationConfig) else None


def __getattr__(name: str) -> Any:
    """The names of 0.5, such as `KnnProtocol`."""
    new = f"{name.removesuffix('Protocol')}Evaluation"
    if not name.endswith("Protocol") or new not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is called {new} now; the old name goes with 1.0", DeprecationWarning, stacklevel=2)
    return globals()[new]
