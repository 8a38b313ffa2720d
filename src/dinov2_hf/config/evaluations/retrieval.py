"""Finding images: of the same thing, and copies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..checks import at_least, choice, positive
from ..data import SourceConfig
from .base import EvaluationConfig

COPIES = ("strong", "crop", "jpeg", "rotate", "flip", "overlay", "color")
"""Kinds of copies that can be made."""


@dataclass
class DescriptorConfig(EvaluationConfig):
    """How an image becomes the vector that is compared by its cosine."""

    descriptor: str = "cls"
    """`cls`, `gem` (generalised mean of the patches), or `cls_gem`, both one after the other."""
    gem_power: float = 3.0
    """Power p of the generalised mean, `mean(patch ** p) ** (1 / p)`; published: 3 (Radenovic et al., 2018), 4 (DINO,
    copy detection)."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes of the image, relative to `crop_size`, whose descriptors are averaged; published multi-scale:
    [1.0, 0.7071, 0.5] (DINO) or [1.4142, 1.0, 0.7071] (Radenovic et al., 2018)."""
    whole: bool = True
    """The whole image, squeezed into a square of `crop_size`, as DINO's code does, whatever `resize_size` is;
    false: the usual centre crop."""
    whitening: SourceConfig = field(default_factory=SourceConfig)
    """Images from which the whitening of descriptors is learnt, others than those compared; none without its `path`."""
    whitening_dim: int = 0
    """Directions of largest variance that whitening keeps; 0: all."""

    def check(self) -> DescriptorConfig:
        super().check()
        choice("descriptor", self.descriptor, ("cls", "gem", "cls_gem"))
        positive("gem_power", self.gem_power)
        if self.descriptor == "cls" and self.gem_power != 3.0:
            raise ValueError(f"gem_power={self.gem_power:g} has no effect on descriptor=cls; use gem or cls_gem")
        if not self.scales:
            raise ValueError("scales=[] leaves nothing to describe; give [1.0], or several")
        for scale in self.scales:
            positive("scales", scale)
        at_least("whitening_dim", self.whitening_dim, 0)
        if self.whitening_dim and not self.whitening.path:
            raise ValueError(f"whitening_dim={self.whitening_dim} needs images to learn from: set whitening.path")
        return self


@dataclass
class RetrievalEvaluation(DescriptorConfig):
    """Ranking of `train`, the database, by the cosine to each image of `test`, the queries (DINOv2, section 7.3,
    "instance recognition"; Radenovic et al., 2018: revisited Oxford and Paris)."""

    ground_truth: str = "labels"
    """What is relevant to a query. `labels`: the images of its class, by name; where `train` and `test` are the same
    set, all but itself. `columns`: the row numbers (from 0) of the database that `easy_column`, `hard_column` and
    `junk_column` of the queries list: the revisited protocol."""
    easy_column: str = "easy"
    """Lists of images that show the query's object clearly."""
    hard_column: str = "hard"
    """Lists of images that show it under difficult conditions."""
    junk_column: str = "junk"
    """Lists of images that count neither way."""
    box_column: str | None = None
    """Column of boxes [left, top, right, bottom] in pixels to which queries are cropped; published: `bbx`. Without it
    queries are taken whole, as in the code of DINO."""
    k: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Lengths of the lists whose precision is measured; published: 1, 5, 10."""

    def check(self) -> RetrievalEvaluation:
        super().check()
        choice("ground_truth", self.ground_truth, ("labels", "columns", "revisited"))
        if self.ground_truth == "revisited":
            if self.test.path and self.test.path != self.train.path:
                raise ValueError(
                    f"test.path={self.test.path} is not read: the queries are in train.path={self.train.path}; "
                    "leave it out, or use ground_truth=columns"
                )
            choice("box_column", self.box_column or "bbx", ("bbx",))
        for value in self.k:
            at_least("k", value, 1)
        return self


@dataclass
class CopyDetectionEvaluation(DescriptorConfig):
    """Finding the original of an edited copy among distractors (DINO, section 4.2.1: Copydays, subset "strong")."""

    descriptor: str = "cls_gem"
    """`cls`, `gem` (generalised mean of the patches), or `cls_gem`, both one after the other; published: the latter."""
    copies: list[str] = field(default_factory=lambda: list(COPIES))
    """Kinds of copies made of the images of `test`, which are looked for among the originals and the images of
    `train`, the distractors. Empty: `test` holds copies, `train` originals and distractors, and a copy has the label
    of its original."""
    subsets: list[str] = field(default_factory=list)
    """Subsets of Copydays, such as `strong`, `jpegqual/3` or `crops/10`: then `test.path` is its folder, with the
    originals in `original`, and no copies are made. Published: `strong`."""

    def check(self) -> CopyDetectionEvaluation:
        super().check()
        for subset in self.subsets:
            if not re.fullmatch(r"strong|(jpegqual|crops)/\d+", subset):
                raise ValueError(f"subsets={subset!r} is not one of Copydays; use strong, jpegqual/N or crops/N")
        if self.subsets and self.test.path and self.test.path == self.train.path:
            raise ValueError(
                f"train.path and test.path are both {self.test.path}: the distractors have to be other images than the "
                "originals; give Copydays with --test, and distractors with --data or none"
            )
        if self.subsets and self.copies != list(COPIES):
            raise ValueError(f"copies={self.copies} are not made where subsets={self.subsets} are given; leave one out")
        for kind in self.copies:
            choice("copies", kind, COPIES)
        if len(set(self.copies)) < len(self.copies):
            raise ValueError(f"copies={self.copies} names one twice; once is enough")
        return self
