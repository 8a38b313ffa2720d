"""Train, distil and evaluate the DINO family of vision backbones in the Hugging Face ecosystem.

The model classes are imported when they are first asked for, and register with the Auto classes of transformers then.
"""

import importlib

__version__ = "0.5.0"

_MODELS = ("Dinov2Backbone", "Dinov2Config", "Dinov2ForImageClassification", "Dinov2Model")

__all__ = [*_MODELS, "__version__"]


def __getattr__(name: str):
    if name in _MODELS:
        return getattr(importlib.import_module(".backbones", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
