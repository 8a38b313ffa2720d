"""What is minimised: whole networks with their targets and terms, one file for each objective."""

from .base import Students
from .dinov2 import DINOv2Pretraining, ObjectiveOutput
from .distillation import Distillation
from .heads import HEADS_FILE, DINOHead, tensors_of
from .teachers import FeatureTeacher, PrototypeTeacher

__all__ = [
    "HEADS_FILE",
    "DINOHead",
    "DINOv2Pretraining",
    "Distillation",
    "FeatureTeacher",
    "ObjectiveOutput",
    "PrototypeTeacher",
    "Students",
    "tensors_of",
]
