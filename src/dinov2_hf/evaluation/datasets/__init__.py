"""Images with what they are evaluated against: labels, values for each pixel, frames of videos, published layouts."""

from .copydays import Copydays
from .dense import IGNORED, NO_DEPTH, DenseImages, DepthMaps, LabelMaps, common_grid
from .files import FileImages
from .labeled import Labeled, LabeledImages, read_labels, same_classes
from .revisited import Revisited
from .video import FolderFrames, LabeledClips, MaskedVideos, SampledFrames

__all__ = [
    "IGNORED",
    "NO_DEPTH",
    "Copydays",
    "DenseImages",
    "DepthMaps",
    "FileImages",
    "FolderFrames",
    "LabelMaps",
    "Labeled",
    "LabeledClips",
    "LabeledImages",
    "MaskedVideos",
    "Revisited",
    "SampledFrames",
    "common_grid",
    "read_labels",
    "same_classes",
]
