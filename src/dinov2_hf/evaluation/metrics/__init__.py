"""Metrics as `evaluate.Metric` classes of our own: nothing is fetched."""

from .classification import Accuracy, MeanAveragePrecision, MeanPerClassAccuracy, average_precision
from .depth import DepthErrors
from .retrieval import GlobalAveragePrecision, RetrievalPrecision
from .segmentation import MeanIoU
from .video import BoundaryAccuracy, RegionSimilarity

__all__ = [
    "Accuracy",
    "BoundaryAccuracy",
    "DepthErrors",
    "GlobalAveragePrecision",
    "MeanAveragePrecision",
    "MeanIoU",
    "MeanPerClassAccuracy",
    "RegionSimilarity",
    "RetrievalPrecision",
    "average_precision",
]
