"""k-nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import at_least, positive
from .base import EvaluationConfig


@dataclass
class KnnEvaluation(EvaluationConfig):
    """Weighted k-NN on CLS (DINO, section 4.1; DINOv2, section 7.1)."""

    k: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    """Numbers of neighbours, each a result; published: 10, 20, 100, 200."""
    temperature: float = 0.07
    """Of the votes' weights; published: 0.07."""
    per_class: list[int] = field(default_factory=list)
    """Few-shot: references drawn of each class, each a result; empty for all references."""
    tries: int = 5
    """Draws of a few-shot result, which is their mean; published: 5."""

    def check(self) -> KnnEvaluation:
        super().check()
        if not self.k:
            raise ValueError("k=[] asks for nothing; give numbers of neighbours, such as k=[10,20]")
        for value in [*self.k, *self.per_class]:
            at_least("k" if value in self.k else "per_class", value, 1)
        positive("temperature", self.temperature)
        positive("tries", self.tries)
        return self
