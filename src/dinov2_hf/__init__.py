"""Train, distil and evaluate DINOv2 vision transformers in the Hugging Face ecosystem."""

from .backbones import Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model

__version__ = "0.5.0"

__all__ = ["Dinov2Backbone", "Dinov2Config", "Dinov2ForImageClassification", "Dinov2Model", "__version__"]
