"""Self-supervised objectives over whole networks."""

from .batch import SSLBatch
from .distillation import Distillation
from .frozen import FeatureTeacher, PrototypeTeacher
from .pretraining import DINOv2Pretraining, ObjectiveOutput
from .students import Students

__all__ = [
    "DINOv2Pretraining",
    "Distillation",
    "FeatureTeacher",
    "ObjectiveOutput",
    "PrototypeTeacher",
    "SSLBatch",
    "Students",
]
