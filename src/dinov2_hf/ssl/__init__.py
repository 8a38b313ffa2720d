"""Self-supervised objectives over whole networks."""

from .batch import SSLBatch
from .pretraining import DINOv2Pretraining, PretrainingOutput

__all__ = ["DINOv2Pretraining", "PretrainingOutput", "SSLBatch"]
