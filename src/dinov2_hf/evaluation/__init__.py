"""What frozen features can do, as numbers."""

from .base import Evaluation, Result, open_labeled
from .copy_detection import evaluate_copy_detection
from .dense_heads import load_dense_head
from .dense_prediction import predict_map
from .depth import evaluate_depth
from .during_run import evaluations_of, load_evaluations
from .fine_grained import evaluate_fine_grained
from .finetune import evaluate_finetune
from .knn import evaluate_knn, weighted_knn
from .linear import evaluate_linear
from .logistic import evaluate_logistic
from .propagation import evaluate_propagation
from .registry import Evaluator, evaluators, find_evaluator, register_evaluator
from .report import Report, run_evaluator
from .retrieval import evaluate_retrieval
from .robustness import evaluate_robustness
from .segmentation import evaluate_segmentation
from .video import evaluate_video

__all__ = [
    "Evaluation",
    "Evaluator",
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
    "evaluators",
    "find_evaluator",
    "load_dense_head",
    "load_evaluations",
    "open_labeled",
    "predict_map",
    "register_evaluator",
    "run_evaluator",
    "weighted_knn",
]
