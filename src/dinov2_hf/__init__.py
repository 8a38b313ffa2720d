"""Train, distil and evaluate the DINO family of vision backbones in the Hugging Face ecosystem.

What is named here is imported when it is first asked for. The model classes register with the Auto classes of
transformers then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Run,
        distill,
        evaluate,
        extract_features,
        fit,
        load_backbone,
        load_config,
        open_run,
        pretrain,
    )
    from .backbones import (
        Dinov2Backbone,
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
        register_backbone,
    )
    from .data import register_source
    from .evaluation import register_evaluator
    from .objectives import register_objective, register_term

__version__ = "0.5.0"

_PLACES = {
    "api": (
        "Run",
        "distill",
        "evaluate",
        "extract_features",
        "fit",
        "load_backbone",
        "load_config",
        "open_run",
        "pretrain",
    ),
    "backbones": (
        "Dinov2Backbone",
        "Dinov2Config",
        "Dinov2ForImageClassification",
        "Dinov2Model",
        "ResNetConfig",
        "ResNetModel",
        "ViTConfig",
        "ViTModel",
        "register_backbone",
    ),
    "data": ("register_source",),
    "evaluation": ("register_evaluator",),
    "objectives": ("register_objective", "register_term"),
}
"""The public names by the part of the package that has them."""

__all__ = [
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "ResNetConfig",
    "ResNetModel",
    "Run",
    "ViTConfig",
    "ViTModel",
    "__version__",
    "distill",
    "evaluate",
    "extract_features",
    "fit",
    "load_backbone",
    "load_config",
    "open_run",
    "pretrain",
    "register_backbone",
    "register_evaluator",
    "register_objective",
    "register_source",
    "register_term",
]


def __getattr__(name: str) -> Any:
    for part, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f".{part}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
