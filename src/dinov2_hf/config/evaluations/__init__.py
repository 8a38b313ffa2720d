"""What can be set of each protocol of evaluation."""

from .base import EvaluationConfig
from .classification import (
    FineGrainedProtocol,
    FinetuneProtocol,
    LabeledSetConfig,
    LinearProtocol,
    LogisticConfig,
    LogisticProtocol,
)
from .dense import DepthProtocol, DepthSourceConfig, DepthTestConfig, SegmentationProtocol
from .knn import KnnProtocol
from .retrieval import CopyDetectionProtocol, RetrievalProtocol
from .robustness import RobustnessProtocol
from .video import PropagationProtocol, VideoProtocol

__all__ = [
    "CopyDetectionProtocol",
    "DepthProtocol",
    "DepthSourceConfig",
    "DepthTestConfig",
    "EvaluationConfig",
    "FineGrainedProtocol",
    "FinetuneProtocol",
    "KnnProtocol",
    "LabeledSetConfig",
    "LinearProtocol",
    "LogisticConfig",
    "LogisticProtocol",
    "PropagationProtocol",
    "RetrievalProtocol",
    "RobustnessProtocol",
    "SegmentationProtocol",
    "VideoProtocol",
]
