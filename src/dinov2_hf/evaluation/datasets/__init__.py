"""Images with what they are evaluated against: labels, a value for each pixel, frames of videos."""

from .dense import IGNORED, NO_DEPTH, DenseImages, DepthMaps, LabelMaps, common_grid
from .labeled import Labeled, LabeledImages, read_labels, same_classes
from .video import FolderFrames, LabeledClips, MaskedVideos, SampledFrames

__all__ = [
    "IGNORED",
    "NO_DEPTH",
    "DenseImages",
    "DepthMaps",
    "FolderFrames",
    "LabelMaps",
    "Labeled",
    "LabeledClips",
    "LabeledImages",
    "MaskedVideos",
    "SampledFrames",
    "common_grid",
    "read_labels",
    "same_classes",
]
