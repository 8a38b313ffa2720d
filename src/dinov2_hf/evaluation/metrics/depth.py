"""Errors of depth maps (Eigen et al., 2014): each of an image, then averaged over images.

Axes: `H` x `W` pixels.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

DEPTH_METRICS = {
    "abs_rel": "absolute relative error",
    "rmse": "root mean square error (m)",
    "log10": "absolute error of log10",
    "sq_rel": "squared relative error (m)",
    "rmse_log": "root mean square error of log",
    "delta1": "pixels within a factor of 1.25 (%)",
    "delta2": "pixels within a factor of 1.25^2 (%)",
    "delta3": "pixels within a factor of 1.25^3 (%)",
}
"""In the order of `depth_errors`, with what they are."""
# top, bottom, left and right, as shares of the image
_CROPS = {
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def depth_errors(depth: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Errors of one image in the order of `DEPTH_METRICS`, `[8]`; NaN where no pixel is valid.

    Args:
        depth: metres, above 0, `[H, W]`.
        truth: metres `[H, W]`.
        valid: the pixels that count `[H, W]`.
    """
    depth, truth = depth[valid].float(), truth[valid].float()
    difference, logs = depth - truth, depth.log() - truth.log()
    ratio = torch.maximum(depth / truth, truth / depth)
    return torch.stack(
        [
            (difference.abs() / truth).mean(),
            difference.square().mean().sqrt(),
            logs.abs().mean() / np.log(10),
            (difference.square() / truth).mean(),
            logs.square().mean().sqrt(),
            *((ratio < 1.25**power).float().mean() * 100 for power in (1, 2, 3)),
        ]
    )


def crop_mask(size: tuple[int, int], crop: str) -> Tensor:
    """The pixels `[H, W]` that count by a crop of the benchmarks: `none`, `nyu`, `eigen` or `garg`."""
    mask = torch.zeros(size, dtype=torch.bool)
    top, bottom, left, right = _CROPS.get(crop, (0.0, 1.0, 0.0, 1.0))
    height, width = size
    # a little more, as 471 / 480 * 480 may fall below 471
    rows, columns = (
        slice(int(a * side + 1e-6), int(b * side + 1e-6))
        for a, b, side in ((top, bottom, height), (left, right, width))
    )
    mask[rows, columns] = True
    return mask


class DepthErrors(evaluate.Metric):
    """Errors of depth maps, averaged over images: `DepthErrors().compute(predictions=maps, references=maps)`.

    Maps are flattened; references of 0 do not count, nor do images without any other.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Errors of depth in metres: " + ", ".join(DEPTH_METRICS.values()),
            citation="",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        pairs = [tuple(torch.as_tensor(np.asarray(each)) for each in pair) for pair in zip(predictions, references)]
        errors = np.stack([depth_errors(depth, truth, truth > 0).numpy() for depth, truth in pairs])
        return dict(zip(DEPTH_METRICS, np.nanmean(errors, axis=0).tolist()))
