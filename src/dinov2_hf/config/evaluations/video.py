"""Videos: classification of clips, and propagation of masks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import at_least, choice, positive
from ..data import SourceConfig
from .base import EvaluationConfig


@dataclass
class VideoEvaluation(EvaluationConfig):
    """Linear classifiers on the frozen features of some frames of a clip (DINOv2, section 7.2).

    Clips are a folder CLASS/CLIP/FRAME, or SPLIT/CLASS/CLIP/FRAME, or a table with a column of lists of images, or of
    animated pictures, and a column of labels.
    """

    validation: SourceConfig = field(default_factory=lambda: SourceConfig(split="validation"))
    """Clips that the best head is chosen on; without a path it is chosen on the test set, as published."""
    num_frames: int = 8
    """Frames of each clip, the middles of as many segments; published: 8."""
    pooling: str = "mean"
    """What becomes of their CLS tokens: mean, or concat, which keeps their order. Published: mean for UCF-101 and
    Kinetics-400, concat for Something-Something v2."""
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    )
    """Of the heads, for a batch of 256: each is multiplied by global_batch / 256; those published for images."""
    iterations: int = 12_500
    """Updates of the heads; published for images: 12,500."""
    global_batch: int = 1024
    """Clips in an update; published for images: 128 on each of 8 GPUs."""

    def check(self) -> VideoEvaluation:
        super().check()
        choice("pooling", self.pooling, ("mean", "concat"))
        if not self.learning_rates:
            raise ValueError("learning_rates=[] leaves no head to train; give at least one value")
        for rate in self.learning_rates:
            positive("learning_rates", rate)
        for name in ("num_frames", "iterations", "global_batch"):
            positive(name, getattr(self, name))
        return self


@dataclass
class PropagationEvaluation(EvaluationConfig):
    """Masks of the first frame carried through a video by nearest patches (DINO, section 4.2.2).

    Nothing is learnt, so that `test` is read alone; features are not kept on disk. Videos are a folder laid out as
    DAVIS 2017, or a table with a list of frames (test.image_column) and a list of as many index masks
    (test.label_column; default: masks or annotations) in each row.
    """

    resize_size: int = 480
    """Short side of the frames in pixels; both sides are rounded to multiples of the patch. Published: 480."""
    crop_size: int = 0
    """0: frames are not cropped."""
    batch_size: int = 8
    """Frames per process and forward of the backbone."""
    context_frames: int = 7
    """Frames before the present one that give labels beside the first one; published: 7."""
    neighbors: int = 5
    """Patches of these frames, the nearest ones, that vote for each patch; published: 5."""
    radius: int = 12
    """How many rows and columns of patches away they may lie; 0: anywhere. Published: 12."""
    temperature: float = 0.1
    """Of the votes' weights `exp(cosine / temperature)`; published: 0.1."""
    pictures: int = 4
    """Videos of which a picture with some frames, the truth above the prediction, is left in the output folder."""
    save_masks: bool = False
    """Leave all predicted masks in the output folder, as PNG files that the evaluation tool of DAVIS reads."""

    def check(self) -> PropagationEvaluation:
        super().check()
        if self.crop_size:
            raise ValueError(f"crop_size={self.crop_size}, but whole frames are compared; leave it out, or at 0")
        positive("resize_size", self.resize_size)
        for name in ("context_frames", "radius", "pictures"):
            at_least(name, getattr(self, name), 0)
        at_least("neighbors", self.neighbors, 1)
        positive("temperature", self.temperature)
        return self
