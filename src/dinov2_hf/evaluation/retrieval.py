"""Retrieval of images that show the same (DINOv2, section 7.3; Radenovic et al., 2018: the revisited protocol).

The search is exact: cosines to the whole database, and all of it sorted.

Axes: `Q` queries, `R` images of the database, `D` width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config.evaluations import RetrievalEvaluation
from ..features.extract import Images
from .base import Evaluation, Result, given
from .datasets import LabeledImages, Revisited
from .descriptors import BoxedImages, PlainImages, Whitening, describe, learn_whitening
from .intervals import bootstrap
from .metrics import GlobalAveragePrecision, RetrievalPrecision
from .metrics.retrieval import average_precision_of_places, global_average_precision, precision_at
from .registry import register_evaluator

logger = logging.getLogger(__name__)

_CHUNK = 1 << 25  # cosines that are held at a time
Rows = Sequence[list[int]]


@dataclass
class Truth:
    """What is relevant to a query, and what counts neither way, as rows of the database."""

    relevant: Sequence[int] | np.ndarray
    junk: Sequence[int] | np.ndarray = ()


@dataclass
class Ranking:
    """What was found for the queries of one setup."""

    places: list[np.ndarray]
    """Of the relevant images of each query, from 0, junk left out."""
    confidences: np.ndarray
    """Cosines of the nearest images that are not junk, `[Q, top]`; -inf where the database has fewer."""
    correct: np.ndarray
    """Whether these are relevant, `[Q, top]`."""


def rank(queries: Tensor, database: Tensor, setups: dict[str, list[Truth]], top: int = 1) -> dict[str, Ranking]:
    """Ranks unit vectors `[R, D]` by their cosine to each of `[Q, D]`, once for all setups.

    Of equal cosines the earlier row is first.

    Args:
        setups: for each, the truth of every query.
        top: how many nearest images are kept.
    """
    found = {name: Ranking([], np.empty((len(queries), top)), np.empty((len(queries), top), bool)) for name in setups}
    number = 0
    for chunk in queries.split(max(_CHUNK // len(database), 1)):
        values, indices = (chunk @ database.T).sort(dim=1, descending=True, stable=True)
        places = torch.empty_like(indices).scatter_(
            1, indices, torch.arange(len(database), device=indices.device).expand_as(indices)
        )
        cosines, order, place = values.cpu().numpy(), indices.cpu().numpy(), places.cpu().numpy()
        for row in range(len(chunk)):
            for name, truths in setups.items():
                truth, ranking = truths[number], found[name]
                junk = np.sort(place[row, np.asarray(truth.junk, dtype=int)])
                ranks = np.sort(place[row, np.asarray(truth.relevant, dtype=int)])
                ranking.places.append(ranks - np.searchsorted(junk, ranks))
                nearest = np.setdiff1d(np.arange(min(top + len(junk), len(database))), junk)[:top]
                padding = (0, top - len(nearest))
                ranking.confidences[number] = np.pad(cosines[row, nearest], padding, constant_values=-np.inf)
                ranking.correct[number] = np.pad(np.isin(order[row, nearest], truth.relevant), padding)
            number += 1
    return found


@register_evaluator(
    "retrieval", config=RetrievalEvaluation, title="ranking of a database by cosine", source="DINOv2 7.3"
)
def evaluate_retrieval(evaluation: Evaluation) -> Iterator[Result]:
    """Mean average precision and precision at `k`; by labels also the global average precision. Collective.

    Raises:
        ValueError: ground truth that is missing or impossible, no image that can be decoded, no query with a relevant
            image.
    """
    config: RetrievalEvaluation = evaluation.config
    database, queries, setups, boxes = _open(evaluation)
    if boxes is not None:
        transform = evaluation.transform
        queries = BoxedImages(queries, boxes, len(transform.mean), transform.decoding)
    asked = describe(evaluation, queries, "Queries")
    stored = describe(evaluation, database, "Database")
    rankings = search(evaluation, asked, stored, setups, learn_whitening(evaluation))
    for name, ranking in rankings.items():
        yield from precision_results(ranking, name, config.k, config.seed)
    if config.ground_truth == "labels":
        title = "global average precision (%) of the nearest image of each query"
        yield global_result(rankings[""], "global_average_precision", title, config.seed)


def _open(evaluation: Evaluation) -> tuple[Images, Images, dict[str, list[Truth]], np.ndarray | None]:
    """The database, the queries, what is relevant to each by setup, and the boxes `[Q, 4]` they are cropped to."""
    config: RetrievalEvaluation = evaluation.config
    if config.ground_truth == "revisited":
        published = Revisited(str(given(config.train, "train").path))
        setups = revisited_setups(*(published.rows[part] for part in ("easy", "hard", "junk")))
        return published.database, published.queries, setups, published.boxes if config.box_column else None
    database: LabeledImages | PlainImages
    queries: LabeledImages | PlainImages
    if config.ground_truth == "labels":
        database, queries = evaluation.labeled(config.train, "train"), evaluation.labeled(config.test, "test")
        setups = {"": truth_of_labels(queries, database)}
    else:
        database, queries = PlainImages(config.train, "train"), PlainImages(config.test, "test")
        setups = truth_of_columns(queries, len(database), config)
    if not config.box_column:
        return database, queries, setups, None
    plain = PlainImages(config.test, "test")
    return database, plain, setups, _boxes(plain, config.box_column)


def search(
    evaluation: Evaluation,
    asked: tuple[np.ndarray, Tensor],
    stored: tuple[np.ndarray, Tensor],
    setups: dict[str, list[Truth]],
    whitening: Whitening | None,
    top: int = 1,
) -> dict[str, Ranking]:
    """Ranks readable images, given as rows and descriptors, whitened; a setup without any relevant image is left out.

    Raises:
        ValueError: no query has a relevant image.
    """
    queries, database = (pair[1] if whitening is None else whitening(pair[1]) for pair in (asked, stored))
    place = {row: number for number, row in enumerate(stored[0].tolist())}  # images that are broken have none

    def readable(rows: Sequence[int]) -> list[int]:
        return [place[row] for row in rows if row in place]

    known = {
        name: [Truth(readable(truths[row].relevant), readable(truths[row].junk)) for row in asked[0].tolist()]
        for name, truths in setups.items()
    }
    kept = {name: truths for name, truths in known.items() if any(len(truth.relevant) for truth in truths)}
    if not kept:
        raise ValueError("no query has a relevant image in the database; look at test, train and their labels")
    for name, truths in known.items():
        missing = sum(not len(truth.relevant) for truth in truths)
        if missing and evaluation.is_main:
            setup = f" ({name})" if name else ""
            logger.warning(
                "%d of %d queries have no relevant image%s: left out of the means", missing, len(truths), setup
            )
    return rank(queries, database, kept, top)


def precision_results(ranking: Ranking, setup: str, k: Sequence[int], seed: int) -> Iterator[Result]:
    """Mean average precision and precision at each of `k` over the queries that have a relevant image."""
    counts = [len(places) for places in ranking.places]
    means = RetrievalPrecision().compute(predictions=ranking.places, references=counts, k=k)
    having = [places for places in ranking.places if len(places)]
    columns = [[average_precision_of_places(places, len(places)) for places in having]]
    columns += [[precision_at(places, value) for places in having] for value in k]
    some = f", {len(having)} of {len(counts)} queries" if len(having) < len(counts) else ""
    titles = ["mean average precision (%)", *(f"mean precision at {value} (%)" for value in k)]
    for (name, mean), title, values in zip(means.items(), titles, columns):
        metric, title = (f"{name}_{setup}", f"{title}, {setup}") if setup else (name, title)
        yield Result(metric, mean, title + some, bootstrap(np.mean, 100 * np.array(values), seed), kind=name)


def global_result(ranking: Ranking, metric: str, title: str, seed: int) -> Result:
    """Average precision of the nearest images of all queries in one list, those without a relevant image included."""
    answers = np.isfinite(ranking.confidences)
    possible = np.minimum([len(places) for places in ranking.places], ranking.confidences.shape[1])
    value = GlobalAveragePrecision().compute(
        predictions=ranking.confidences[answers], references=ranking.correct[answers], total=int(possible.sum())
    )

    def statistic(rows: np.ndarray) -> float:
        given = answers[rows]
        confidences, correct = ranking.confidences[rows][given], ranking.correct[rows][given]
        return 100 * global_average_precision(confidences, correct, possible[rows].sum())

    ends = bootstrap(statistic, np.arange(len(ranking.places)), seed)
    return Result(metric, value["global_average_precision"], title, ends, kind="global_average_precision")


def truth_of_labels(queries: LabeledImages, database: LabeledImages) -> list[Truth]:
    """Images of the same class, by its name; in one and the same set each query is junk to itself.

    Raises:
        ValueError: images with several labels.
    """
    for one in (queries, database):
        if one.multi_label:
            raise ValueError(f"{one.where} has lists of labels; retrieval needs one class an image, or columns of rows")
    rows = {name: np.flatnonzero(database.labels == label) for label, name in enumerate(database.names)}
    of_class = [rows.get(name, np.empty(0, int)) for name in queries.names]
    if queries.fingerprint is None or queries.fingerprint != database.fingerprint:
        return [Truth(of_class[label]) for label in queries.labels]
    return [Truth(np.setdiff1d(of_class[label], [row]), [row]) for row, label in enumerate(queries.labels)]


def truth_of_columns(queries: PlainImages, count: int, config: RetrievalEvaluation) -> dict[str, list[Truth]]:
    """The setups of the revisited protocol, by the columns of the queries.

    Args:
        count: images of the database.

    Raises:
        ValueError: a column that is missing, is no list of row numbers, or has one that is not in the database.
    """
    parts = ("easy", "hard", "junk")
    return revisited_setups(
        *(_row_lists(queries, getattr(config, f"{name}_column"), f"{name}_column", count) for name in parts)
    )


def revisited_setups(easy: Rows, hard: Rows, junk: Rows) -> dict[str, list[Truth]]:
    """The setups easy, medium and hard of the revisited protocol (Radenovic et al., 2018, section 2.3).

    Args:
        easy, hard, junk: for each query the rows of the database that are so.
    """
    return {
        "easy": [Truth(e, j + h) for e, h, j in zip(easy, hard, junk)],
        "medium": [Truth(e + h, j) for e, h, j in zip(easy, hard, junk)],
        "hard": [Truth(h, j + e) for e, h, j in zip(easy, hard, junk)],
    }


def _row_lists(queries: PlainImages, column: str, key: str, count: int) -> list[list[int]]:
    lists = [[] if rows is None else rows for rows in _column(queries, column, key)]
    for query, rows in enumerate(lists):
        if not isinstance(rows, list) or not all(isinstance(row, int) for row in rows):
            raise ValueError(f"column {column!r} of {queries.where} has {rows!r}, not a list of row numbers")
        if wrong := [row for row in rows if not 0 <= row < count]:
            raise ValueError(
                f"column {column!r} of {queries.where} names row {wrong[0]} for query {query}, but the database has "
                f"{count} images; rows are counted from 0"
            )
    return [sorted(set(rows)) for rows in lists]


def _boxes(queries: PlainImages, column: str) -> np.ndarray:
    """Boxes `[Q, 4]`."""
    boxes = _column(queries, column, "box_column")
    for query, box in enumerate(boxes):
        good = isinstance(box, list) and len(box) == 4 and None not in box and np.isfinite(box).all()
        if not good or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(
                f"column {column!r} of {queries.where} has {box!r} for query {query}, not a box "
                "[left, top, right, bottom] in pixels"
            )
    return np.array(boxes, dtype=float)


def _column(queries: PlainImages, column: str, key: str) -> list:
    if column not in queries.table.column_names:
        raise ValueError(
            f"{queries.where} lacks {key}={column!r}; its columns are {', '.join(queries.table.column_names)}"
        )
    return queries.table[column][:]
