"""Copy detection (DINO, section 4.2.1: Copydays): which of many images was this one made of?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..config.evaluations import CopyDetectionEvaluation
from .base import Evaluation, Result, given
from .datasets import Copydays, FileImages
from .descriptors import PlainImages, describe, learn_whitening
from .edited_copies import Copies
from .registry import register_evaluator
from .retrieval import Ranking, Truth, global_result, precision_results, search, truth_of_labels

_TOP = 10  # answers of each query that are ranked against those of the others


@register_evaluator(
    "copy_detection", config=CopyDetectionEvaluation, title="originals of edited copies", source="DINO 4.2.1, Copydays"
)
def evaluate_copy_detection(evaluation: Evaluation) -> Iterator[Result]:
    """Mean average precision and micro-average precision for each kind of copy. Collective.

    Raises:
        ValueError: nothing that can be read or decoded, no copy whose original is there, originals among the
            distractors.
    """
    config: CopyDetectionEvaluation = evaluation.config
    whitening = learn_whitening(evaluation)
    if not config.copies and not config.subsets:
        database, queries = evaluation.labeled(config.train, "train"), evaluation.labeled(config.test, "test")
        setups = {"": truth_of_labels(queries, database)}
        asked, stored = describe(evaluation, queries, "Copies"), describe(evaluation, database, "Originals")
        yield from _results(search(evaluation, asked, stored, setups, whitening, _TOP)[""], "", config.seed)
        return
    published = Copydays(str(given(config.test, "test").path)) if config.subsets else None
    originals = published.originals if published else PlainImages(config.test, "test")
    rows, vectors = describe(evaluation, originals, "Originals")
    if config.train.path:
        distractors = PlainImages(config.train, "train")
        if originals.fingerprint == distractors.fingerprint:
            raise ValueError(
                f"test and train are both {originals.where}: the distractors have to be other images than the "
                "originals; give another split, or none with train.path=null"
            )
        more, others = describe(evaluation, distractors, "Distractors")
        rows, vectors = np.concatenate((rows, len(originals) + more)), torch.cat((vectors, others))
    for name, copies, truths in _copies(evaluation, originals, published):
        asked = describe(evaluation, copies, f"Copies, {name}")
        ranking = search(evaluation, asked, (rows, vectors), {"": truths}, whitening, _TOP)[""]
        yield from _results(ranking, name.replace("/", "_"), config.seed)


def _copies(
    evaluation: Evaluation, originals: PlainImages | FileImages, published: Copydays | None
) -> Iterator[tuple[str, Copies | FileImages, list[Truth]]]:
    """Each kind of copies, by its name, and the rows of their originals: those of Copydays, or copies that are made."""
    config: CopyDetectionEvaluation = evaluation.config
    if published is not None:
        for subset in config.subsets:
            images, rows = published.copies(subset)
            yield subset, images, [Truth(row) for row in rows]
        return
    transform, truths = evaluation.transform, [Truth([row]) for row in range(len(originals))]
    for kind in config.copies:
        yield kind, Copies(originals, kind, config.seed, len(transform.mean), transform.decoding), truths


def _results(ranking: Ranking, kind: str, seed: int) -> Iterator[Result]:
    yield from precision_results(ranking, kind, (), seed)
    metric, some = ("micro_average_precision", "") if not kind else (f"micro_average_precision_{kind}", f", {kind}")
    yield global_result(ranking, metric, f"micro average precision (%){some}", seed)
