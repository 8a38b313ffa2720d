"""Patch features as colours: their first three principal components (DINOv2, section 7.5, figures 1 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models import Dinov2Model


def principal_colors(features: Tensor) -> Tensor:
    """The first three principal components of features `[..., D]` over all of them, scaled to [0, 1]: `[..., 3]`.

    Each component is cut at its 2nd and 98th percentile, so that a few outliers do not take the whole range.
    """
    flat = features.float().flatten(0, -2)
    centred = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    if len(directions) < 3:
        directions = torch.cat((directions, directions.new_zeros(3 - len(directions), directions.shape[1])))
    # the sign of a component is arbitrary: make its largest loading positive, so that pictures can be compared
    directions = directions[:3] * directions[:3].gather(1, directions[:3].abs().argmax(1, keepdim=True)).sign()
    components = centred @ directions.T
    low, high = (torch.quantile(components, share, dim=0) for share in (0.02, 0.98))
    return ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).unflatten(0, features.shape[:-1])


@torch.no_grad()
def plot_patch_pca(
    backbone: Dinov2Model, images: Tensor, pixels: np.ndarray, path: Path, titles: Sequence[str] | None = None
) -> Path:
    """Draws images beside the colours of their patch features.

    Args:
        images: what the model takes, `[B, 3, H, W]`.
        pixels: the same images as uint8 `[B, 3, H, W]`.
        path: the PNG file to write.
        titles: a line for each image.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (maps, _), *_ = backbone.get_intermediate_layers(images, 1)
    colors = principal_colors(maps.permute(0, 2, 3, 1)).cpu().numpy()
    rows = -(-len(pixels) // 4)
    figure, axes = plt.subplots(rows, 8, figsize=(16, 2.1 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, (image, color) in enumerate(zip(pixels, colors)):
        left, right = axes[index // 4, index % 4 * 2], axes[index // 4, index % 4 * 2 + 1]
        left.imshow(image.transpose(1, 2, 0))
        right.imshow(color, interpolation="nearest")
        if titles:
            left.set_title(titles[index], fontsize=9)
    figure.suptitle("First three principal components of the teacher's patch features as red, green, blue")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
