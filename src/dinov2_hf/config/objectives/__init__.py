"""The configuration of the runs of each objective."""

from .dino import DINORunConfig
from .dinov2 import DINOv2RunConfig
from .distill_features import FeatureDistillationConfig
from .distill_prototypes import PrototypeDistillationConfig
from .ibot import IBOTRunConfig
from .pretraining import PretrainingRunConfig
from .simdino import SimDINORunConfig

__all__ = [
    "DINORunConfig",
    "DINOv2RunConfig",
    "FeatureDistillationConfig",
    "IBOTRunConfig",
    "PretrainingRunConfig",
    "PrototypeDistillationConfig",
    "SimDINORunConfig",
]
