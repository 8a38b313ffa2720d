"""Metrics of object masks in videos: region similarity J and boundary accuracy F (Perazzi et al., 2016, section 4).

Averaged as DAVIS 2017 does (Pont-Tuset et al., 2017): over the frames of an object, then over the objects of all
videos. Axes: `T` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from PIL.Image import Image

BOUND = 0.008
"""How far boundaries that match may lie apart, as a share of the diagonal of the frame."""
VOID = 255
"""Index of pixels of a reference that count neither way."""


def region_similarity(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Intersection over union of two masks `[H, W]`, in [0, 1]; 1 where both are empty."""
    union = np.count_nonzero(prediction | reference)
    return np.count_nonzero(prediction & reference) / union if union else 1.0


def boundary_accuracy(prediction: np.ndarray, reference: np.ndarray, bound: float = BOUND) -> float:
    """F-measure of the boundaries of two masks `[H, W]`, in [0, 1]; 1 where neither has one.

    A pixel of a boundary is right if the other boundary has one within `bound` times the diagonal, rounded up.
    """
    radius = math.ceil(bound * math.hypot(*prediction.shape))
    boundaries = boundary(prediction), boundary(reference)
    rows, columns = np.nonzero(boundaries[0] | boundaries[1])
    if not all(lines.any() for lines in boundaries):
        return float(len(rows) == 0)
    # nothing outside the box around both can match: far less to measure
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    found, true = (lines[box] for lines in boundaries)
    precision, recall = _near(true, radius)[found].mean(), _near(found, radius)[true].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of `mask` `[H, W]` that differ from that to the right, below, or both; the frame's edge is none."""
    shifted = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ shifted[:-1, 1:]) | (mask ^ shifted[1:, :-1]) | (mask ^ shifted[1:, 1:])


def _near(lines: np.ndarray, radius: int) -> np.ndarray:
    """The pixels that a dilation of `lines` with a disk of `radius` pixels covers."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError:
        raise ImportError('boundary accuracy needs scipy: pip install "dinov2_hf[evaluate]"') from None
    return distance_transform_edt(~lines) <= radius


class _VideoMetric(evaluate.Metric):
    """Base of metrics of index masks: 0 background, 1, 2, … objects; 255 in a reference: does not count.

    A row is a video: a list of its masks in order, as Pillow images, arrays or paths of PNG files. The objects are
    those of the first reference. Its frame and the last one are left out, as in the official evaluation, and so are
    frames without a reference (None). In percent over all objects: `mean`; `recall`, the share of the frames above
    50 %; `decay`, by how much the mean falls from the first quarter of the frames to the last one; and `objects`, the
    three for each object, in the order of the videos and indices.
    """

    def _info(self) -> evaluate.MetricInfo:
        video = datasets.List(datasets.Image())
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            features=datasets.Features({"predictions": video, "references": video}),
        )

    def _compute(self, predictions, references) -> dict[str, float | list]:
        objects = [scores for video in zip(predictions, references) for scores in self._objects(*video)]
        mean, recall, decay = np.mean(objects, axis=0).tolist()
        return {"mean": mean, "recall": recall, "decay": decay, "objects": objects}

    def _objects(self, predictions: Sequence[Image], references: Sequence[Image | None]) -> list[list[float]]:
        """Mean, recall and decay of each object of a video.

        Raises:
            ValueError: no object to follow, or no frame to score.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predicted masks for {len(references)} references; give one for each")
        if not references or references[0] is None:
            raise ValueError("a video has no reference for its first frame, which says what its objects are")
        indices = objects_of(np.asarray(references[0]))
        if not indices:
            raise ValueError("the first reference of a video has no object; number them 1, 2, …, 254")
        inner = [pair for pair in zip(predictions[1:-1], references[1:-1]) if pair[1] is not None]
        if not inner:
            raise ValueError(f"a video of {len(references)} frames has none with a reference between first and last")
        values = np.array([self._frame(np.asarray(found), np.asarray(true), indices) for found, true in inner])
        return [statistics(series) for series in values.T]

    def _frame(self, prediction: np.ndarray, reference: np.ndarray, indices: Sequence[int]) -> list[float]:
        if prediction.shape != reference.shape:
            raise ValueError(f"a mask of {prediction.shape} pixels for one of {reference.shape}; save it in full size")
        counts = reference != VOID
        return [self._score((prediction == index) & counts, reference == index) for index in indices]

    _score: staticmethod


class RegionSimilarity(_VideoMetric):
    """J: intersection over union."""

    _score = staticmethod(region_similarity)


class BoundaryAccuracy(_VideoMetric):
    """F: F-measure of the boundaries, which match within 0.008 of the diagonal."""

    _score = staticmethod(boundary_accuracy)


def objects_of(mask: np.ndarray) -> list[int]:
    """The indices of the objects in an index mask, ascending."""
    return [int(index) for index in np.unique(mask) if index not in (0, VOID)]


def statistics(series: np.ndarray) -> list[float]:
    """Mean, recall (share above 0.5) and decay of values `[T]` in [0, 1], in percent.

    The first and the last quarter, whose means decay compares, share their borders with the second and third ones.
    """
    borders = np.round(np.linspace(0, len(series) - 1, 5) + 1e-10).astype(int)
    first, last = series[: borders[1] + 1], series[borders[3] :]
    values = series.mean(), (series > 0.5).mean(), first.mean() - last.mean()
    return [100 * float(value) for value in values]
