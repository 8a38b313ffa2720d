"""Metrics of semantic segmentation, over the pixels of all images of a set.

Axes: `N` images, `C` classes, `H` x `W` pixels.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor


def class_areas(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class that are right, predicted and true, `[3, C]` int64; where `truth` is below 0, none count.

    They are the diagonal and the two margins of the confusion matrix: all that IoU and accuracy need of it.

    Args:
        labels: predicted classes `[H, W]`.
        truth: `[H, W]`.
    """
    known = truth >= 0
    labels, truth = labels[known], truth[known]
    parts = (truth[labels == truth], labels, truth)
    return torch.stack([torch.bincount(part, minlength=num_classes) for part in parts])


def class_iou(areas: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent, `[..., C]` of `[..., 3, C]`; NaN for a class of no pixel."""
    right, predicted, true = np.moveaxis(np.asarray(areas, dtype=float), -2, 0)
    union = predicted + true - right
    return 100 * np.divide(right, union, out=np.full_like(union, np.nan), where=union > 0)


def pixel_accuracy(areas: np.ndarray) -> np.ndarray:
    """Share of pixels that are right in percent, `[...]` of `[..., 3, C]`; NaN where there are none."""
    right, _, true = np.moveaxis(np.asarray(areas, dtype=float), -2, 0).sum(axis=-1)
    return 100 * np.divide(right, true, out=np.full_like(true, np.nan), where=true > 0)


class MeanIoU(evaluate.Metric):
    """Mean over classes of the intersection over union, in percent; classes in neither of the two do not count.

    `MeanIoU().compute(predictions=maps, references=maps)["mean_iou"]`, with flattened maps of any lengths; references
    below 0 do not count.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Mean over the classes of the intersection over union over all pixels, in percent.",
            citation="",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        labels, truth = (torch.as_tensor(np.concatenate(maps)).long() for maps in (predictions, references))
        num_classes = int(max(labels.max(), truth.max())) + 1
        return {"mean_iou": float(np.nanmean(class_iou(class_areas(labels, truth, num_classes).numpy())))}
