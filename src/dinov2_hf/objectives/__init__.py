"""What is minimised: whole networks with their targets and terms, one file for each objective."""

from .base import (
    OBJECTIVES,
    Networks,
    Objective,
    ObjectiveOutput,
    Places,
    Scheduled,
    Teacher,
    Term,
    backbone_of,
    find_objective,
    register_objective,
)
from .dino import DINO
from .dinov2 import DINOv2
from .distill_features import FeatureDistillation
from .distill_prototypes import PrototypeDistillation
from .further import FurtherTerm, TermInput, register_term
from .heads import DINOHead, IBOTHead, Projected, ProjectionHead
from .ibot import IBOT
from .simdino import SimDINO
from .teachers import FeatureTeacher, FrozenTeacher, PrototypeTeacher

__all__ = [
    "DINO",
    "IBOT",
    "OBJECTIVES",
    "DINOHead",
    "DINOv2",
    "FeatureDistillation",
    "FeatureTeacher",
    "FrozenTeacher",
    "FurtherTerm",
    "IBOTHead",
    "Networks",
    "Objective",
    "ObjectiveOutput",
    "Places",
    "Projected",
    "ProjectionHead",
    "PrototypeDistillation",
    "PrototypeTeacher",
    "Scheduled",
    "SimDINO",
    "Teacher",
    "Term",
    "TermInput",
    "backbone_of",
    "find_objective",
    "register_objective",
    "register_term",
]
