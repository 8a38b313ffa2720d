"""What frozen features can do, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..config.evaluations import (
    CopyDetectionProtocol,
    DepthProtocol,
    EvaluationConfig,
    FineGrainedProtocol,
    FinetuneProtocol,
    KnnProtocol,
    LinearProtocol,
    LogisticProtocol,
    PropagationProtocol,
    RetrievalProtocol,
    RobustnessProtocol,
    SegmentationProtocol,
    VideoProtocol,
)
from .base import Evaluation, Result, open_labeled
from .copy_detection import evaluate_copy_detection
from .dense import predict_map
from .dense_heads import load_dense_head
from .depth import evaluate_depth
from .during_run import evaluations_of, load_evaluations
from .fine_grained import evaluate_fine_grained
from .finetune import evaluate_finetune
from .knn import evaluate_knn, weighted_knn
from .linear import evaluate_linear
from .logistic import evaluate_logistic
from .propagation import evaluate_propagation
from .report import Report, run_protocol
from .retrieval import evaluate_retrieval
from .robustness import evaluate_robustness
from .segmentation import evaluate_segmentation
from .video import evaluate_video


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate: what can be set, and what does it."""

    config: type[EvaluationConfig]
    evaluate: Callable[[Evaluation], Iterator[Result]]
    title: str
    source: str
    """The paper's section."""
    trains: bool = False
    """Whether it moves the weights of the backbone, which then have to come in float32."""


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(KnnProtocol, evaluate_knn, "weighted k-nearest neighbours", "DINO 4.1, DINOv2 7.1"),
    "linear": Protocol(LinearProtocol, evaluate_linear, "linear heads, the best of a grid", "DINOv2 7.1, B.3"),
    "logistic": Protocol(LogisticProtocol, evaluate_logistic, "logistic regression", "DINOv2 7.2"),
    "fine_grained": Protocol(
        FineGrainedProtocol, evaluate_fine_grained, "logistic regression on several sets", "DINOv2 7.2, table 8"
    ),
    "finetune": Protocol(
        FinetuneProtocol, evaluate_finetune, "fine-tuning of the whole backbone", "DINOv2 7.1, table 5", trains=True
    ),
    "robustness": Protocol(
        RobustnessProtocol, evaluate_robustness, "corrupted images and shifted sets", "ImageNet-C, DINOv2 7.1"
    ),
    "retrieval": Protocol(
        RetrievalProtocol,
        evaluate_retrieval,
        "ranking of a database by cosine",
        "DINOv2 7.3",
    ),
    "copy_detection": Protocol(
        CopyDetectionProtocol, evaluate_copy_detection, "originals of edited copies", "DINO 4.2.1, Copydays"
    ),
    "segmentation": Protocol(
        SegmentationProtocol, evaluate_segmentation, "semantic segmentation by a linear layer, or +ms", "DINOv2 7.4"
    ),
    "depth": Protocol(DepthProtocol, evaluate_depth, "monocular depth by lin. 1, lin. 4 or DPT", "DINOv2 7.4"),
    "video": Protocol(VideoProtocol, evaluate_video, "clips by the features of their frames", "DINOv2 7.2"),
    "propagation": Protocol(
        PropagationProtocol, evaluate_propagation, "masks propagated through videos (J&F)", "DINO 4.2.2"
    ),
}
"""By the name of the command: `dinov2-hf evaluate NAME`."""

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Report",
    "Result",
    "evaluate_copy_detection",
    "evaluate_depth",
    "evaluate_fine_grained",
    "evaluate_finetune",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_logistic",
    "evaluate_propagation",
    "evaluate_retrieval",
    "evaluate_robustness",
    "evaluate_segmentation",
    "evaluate_video",
    "evaluations_of",
    "load_dense_head",
    "load_evaluations",
    "open_labeled",
    "predict_map",
    "run_protocol",
    "weighted_knn",
]
