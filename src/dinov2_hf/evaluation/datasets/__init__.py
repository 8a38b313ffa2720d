"""Sets of images with what they are evaluated against."""

from .labeled import LabeledImages, same_classes

__all__ = [
    "LabeledImages",
    "same_classes",
]
