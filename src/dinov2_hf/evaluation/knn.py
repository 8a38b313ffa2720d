"""Weighted k-nearest-neighbour classification (Wu et al., 2018; DINO paper, section 4.1; DINOv2, section 7)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import KnnConfig
from ..data import LabeledImages
from ..features import EvalTransform, FeatureFunction, extract_features
from .metrics import Accuracy


def weighted_knn(
    queries: Tensor, references: Tensor, labels: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Class scores `[Q, num_classes]`: the `k` nearest references vote with weight `exp(cosine / temperature)`.

    Args:
        queries: features `[Q, D]`.
        references: features `[R, D]`; with fewer than `k`, all of them vote.
        labels: `[R]` classes of the references.
    """
    queries = torch.nn.functional.normalize(queries.float(), dim=1)
    references = torch.nn.functional.normalize(references.float(), dim=1)
    scores = []
    for chunk in queries.split(1024):
        similarities, nearest = (chunk @ references.T).topk(min(k, len(references)), dim=1)
        votes = ((similarities - 1) / temperature).exp()  # a common factor, so that nothing overflows
        scores.append(votes.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[nearest], votes))
    return torch.cat(scores)


class KnnEvaluator:
    """k-NN accuracy of features over two labelled sets.

    Args:
        config: the sets and the numbers.
        mean, std: normalisation of the images, as in training.
        num_workers: processes that decode.
    """

    def __init__(self, config: KnnConfig, mean: list[float], std: list[float], num_workers: int = 0) -> None:
        self.config = config
        self.transform = EvalTransform(config.resize_size, config.crop_size, mean, std)
        self.references = LabeledImages(config.reference)
        self.queries = LabeledImages(config.query)
        self._num_workers = num_workers
        if self.references.names != self.queries.names:
            raise ValueError(
                f"the classes of knn.reference ({', '.join(map(str, self.references.names))}) and knn.query "
                f"({', '.join(map(str, self.queries.names))}) differ; give two splits of one set"
            )

    def __call__(self, features: FeatureFunction, accelerator: Accelerator) -> Iterator[tuple[str, float]]:
        """Yields `("knn_accuracy", percent)`. Collective: call on all ranks."""
        config = self.config
        sets = [
            extract_features(
                features, images, self.transform, accelerator, config.batch_size, self._num_workers, f"k-NN {name}"
            )
            for name, images in (("reference", self.references), ("query", self.queries))
        ]
        (references, labels), (queries, truth) = sets
        num_classes = len(self.references.names)
        scores = weighted_knn(queries, references, labels, num_classes, config.k, config.temperature)
        result = Accuracy().compute(predictions=scores.argmax(dim=1).cpu(), references=truth.cpu())
        yield "knn_accuracy", result["accuracy"]
