"""Corrupted images and other sets of the same classes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import choice, positive
from ..data import SourceConfig
from .base import EvaluationConfig

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""Of the benchmark."""
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "saturate")
"""Its authors keep them for validation."""


@dataclass
class RobustnessEvaluation(EvaluationConfig):
    """Logistic regression on clean features, asked about corrupted images (Hendrycks and Dietterich, 2019: ImageNet-C)
    and other sets of the same classes (DINOv2, section 7.1, "domain generalization": ImageNet-A, -R, -Sketch)."""

    corruptions: list[str] = field(default_factory=lambda: list(CORRUPTIONS))
    """Corruptions made of the images of `test`; published: these 15. There are speckle_noise, gaussian_blur and
    saturate besides. Empty for none."""
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    """Strengths of each, over which it is averaged; published: 1 to 5."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Error in percent of another model on each corruption: the errors are divided by them before they are averaged;
    published: AlexNet's on ImageNet. Empty: the mean error itself."""
    shifted: dict[str, SourceConfig] = field(default_factory=dict)
    """Further test sets, each under a name of your own: `shifted.sketch.path=/my/sketches`. Their classes are found by
    name among those of `train`; where they are fewer, an image is given one of these."""
    c: float = 0.1
    """Inverse strength of the L2 penalty of the logistic regression."""

    def check(self) -> RobustnessEvaluation:
        super().check()
        for name in self.corruptions:
            choice("corruptions", name, CORRUPTIONS + EXTRA_CORRUPTIONS)
        for severity in self.severities:
            if severity not in (1, 2, 3, 4, 5):
                raise ValueError(f"severities={self.severities} has {severity}; use some of 1, 2, 3, 4, 5")
        for key in ("corruptions", "severities"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}={getattr(self, key)} names one twice; once is enough")
        if self.corruptions and not self.severities:
            raise ValueError("severities=[] leaves no corrupted image; give some of 1 to 5, or corruptions=[]")
        if self.baseline and (missing := sorted(set(self.corruptions) - set(self.baseline))):
            raise ValueError(f"baseline lacks the error of {', '.join(missing)}; give all, or none")
        for name, error in self.baseline.items():
            choice("baseline", name, CORRUPTIONS + EXTRA_CORRUPTIONS)
            if not 0 < error <= 100:
                raise ValueError(f"baseline.{name}={error} is not in (0, 100]; it is an error in percent")
        for name, source in self.shifted.items():
            if not source.path:
                raise ValueError(f"shifted.{name}.path is not set; give the images: shifted.{name}.path=/my/{name}")
        positive("c", self.c)
        return self
