"""Weighted k-nearest-neighbour classification (Wu et al., 2018; DINO paper, section 4.1; DINOv2, section 7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..config.evaluations import KnnEvaluation
from .base import Evaluation, Result
from .datasets import same_classes
from .probes import LabeledFeatures, figure, in_words, interval, kind_of
from .registry import register_evaluator


def weighted_knn(
    queries: Tensor, references: Tensor, labels: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Class scores `[Q, num_classes]`: the `k` nearest references vote with weight `exp(cosine / temperature)`.

    Args:
        queries: features `[Q, D]`.
        references: features `[R, D]`; with fewer than `k`, all of them vote.
        labels: classes of the references, `[R]`, or flags `[R, num_classes]` where one has several.
    """
    queries = torch.nn.functional.normalize(queries.float(), dim=1)
    references = torch.nn.functional.normalize(references.float(), dim=1)
    scores = []
    for chunk in queries.split(1024):
        similarities, nearest = (chunk @ references.T).topk(min(k, len(references)), dim=1)
        votes = ((similarities - 1) / temperature).exp()  # a common factor, so that nothing overflows
        if labels.ndim == 2:
            scores.append(torch.einsum("qk,qkc->qc", votes, labels[nearest].to(votes.dtype)))
        else:
            scores.append(votes.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[nearest], votes))
    return torch.cat(scores)


@register_evaluator("knn", config=KnnEvaluation, title="weighted k-nearest neighbours", source="DINO 4.1, DINOv2 7.1")
def evaluate_knn(evaluation: Evaluation) -> Iterator[Result]:
    """Accuracy for every number of neighbours; with `per_class` the mean over draws of so many references a class.

    Images of several labels get the mean average precision of the votes instead. Collective.

    Raises:
        ValueError: sets of different classes, or without an image that can be decoded.
    """
    config: KnnEvaluation = evaluation.config
    references, queries = evaluation.labeled(config.train, "train"), evaluation.labeled(config.test, "test")
    same_classes(references, queries)
    if config.per_class and references.multi_label:
        raise ValueError("per_class draws references of each class, which images with several labels do not have")
    kind = kind_of("auto", references.multi_label, references.where)
    stored = LabeledFeatures.of(evaluation, references, "k-NN references")
    asked = LabeledFeatures.of(evaluation, queries, "k-NN queries")
    vectors, labels = stored.parts["cls"][:, -1], stored.labels.to(stored.parts["cls"].device)

    def found_by(k: int, rows: Tensor | slice = slice(None)) -> tuple[float, tuple[float, float]]:
        near = weighted_knn(
            asked.parts["cls"][:, -1], vectors[rows], labels[rows], len(references.names), k, config.temperature
        )
        return figure(near, asked.labels, kind), interval(near, asked.labels, kind)

    name = f"k-NN {in_words(kind)} (%)"
    for k in config.k:
        value, ends = found_by(k)
        yield Result(f"{kind}_k{k}", value, f"{name}, k = {k}", ends, kind=kind)
    for shots in config.per_class:
        draws = [_few(stored.labels, shots, config.seed + attempt) for attempt in range(config.tries)]
        for k in config.k:
            tries = [found_by(k, rows.to(labels.device)) for rows in draws]
            value, low, high = (sum(parts) / len(tries) for parts in zip(*((value, *ends) for value, ends in tries)))
            title = f"{name}, {shots} a class, k = {k}, mean of {len(tries)} draws"
            yield Result(f"{kind}_{shots}_per_class_k{k}", value, title, (low, high), kind=kind)


def _few(labels: Tensor, shots: int, seed: int) -> Tensor:
    """`shots` rows of each class, drawn without replacement; of a class that has fewer, all."""
    rng, classes = np.random.default_rng(seed), labels.numpy()
    rows = [rng.permutation(np.flatnonzero(classes == label))[:shots] for label in np.unique(classes)]
    return torch.from_numpy(np.sort(np.concatenate(rows)))
