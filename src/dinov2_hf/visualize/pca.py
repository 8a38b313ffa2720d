"""Patch features as colours: their first three principal components (DINOv2, section 7.5, figures 1 and 9).

Axes: `h`, `w` rows and columns of patches of an image, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone
from ..data import EvalTransform
from ..features import FeatureExtractor
from .pictures import Picture, patch_features
from .sheet import Sheet

_FEWEST_IN_A_ROW, _MOST_IN_A_ROW = 2, 8


def principal_colors(features: Tensor) -> Tensor:
    """The first three principal components of features `[..., D]` over all of them, scaled to [0, 1]: `[..., 3]`.

    Each component is cut at its 2nd and 98th percentile, so that a few outliers do not take the whole range.
    """
    components = principal_components(features.flatten(0, -2), 3)
    low, high = (_quantile(components, share) for share in (0.02, 0.98))
    return ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).unflatten(0, features.shape[:-1])


def principal_components(features: Tensor, count: int) -> Tensor:
    """The coordinates of features `[N, D]` along their first `count` principal axes, centred: `[N, count]`.

    The sign of an axis is arbitrary: its largest loading is made positive, so that pictures can be compared. Where
    there are fewer axes than asked for, the others are zero.
    """
    centred = features.double() - features.double().mean(dim=0)
    # axes of the covariance: for many patches far cheaper than those of the features, and exact enough in double
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1).T[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    components = (centred @ axes.T).float()
    return torch.nn.functional.pad(components, (0, count - components.shape[1]))


def find_foreground(features: Sequence[Tensor]) -> list[Tensor]:
    """Which patches of images `[h, w, D]` show the objects in them, not what is behind: flags `[h, w]` for each.

    The first principal component over all patches divides them in two at Otsu's threshold, where the two parts are
    furthest from each other (the paper says no more than that it is thresholded). Background is the part that has
    more of the patches at the images' borders, measured by its share of the others. Patches that are all the same
    are all foreground.
    """
    component = principal_components(_joined(features), 1)[:, 0]
    threshold = _otsu(component)
    if threshold is None:
        return [torch.ones(part.shape[:2], dtype=torch.bool) for part in features]
    high = component > threshold
    border = torch.cat([_border(*part.shape[:2]).flatten() for part in features]).to(high.device)
    inside = high[~border] if (~border).any() else high
    foreground = high if high[border].float().mean() <= inside.float().mean() else ~high
    return _split(foreground, features)


def pca_colors(features: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The colours of the patches of images `[h, w, D]`, with components over all images: RGBA in [0, 1], `[h, w, 4]`.

    Args:
        masks: flags `[h, w]` of the patches to colour; the components are of these alone, the others are transparent.
    """
    joined = _joined(features)
    shown = torch.ones(len(joined), dtype=torch.bool)
    if masks is not None:
        shown = torch.cat([mask.flatten() for mask in masks])
    colors = torch.zeros(len(joined), 4)
    if shown.any():
        colors[shown] = torch.nn.functional.pad(principal_colors(joined[shown]), (0, 1), value=1.0)
    return _split(colors, features)


def draw_pca(
    pictures: Sequence[Picture], colors: Sequence[Tensor], path: Path, title: str = "", per_row: int | None = None
) -> Path:
    """Draws images with the colours of their patches (of `pca_colors`) below them to a PNG file.

    Args:
        per_row: images beside each other; default: up to 8.
    """
    columns = per_row or min(max(len(pictures), _FEWEST_IN_A_ROW), _MOST_IN_A_ROW)
    rows = -(-len(pictures) // columns)
    title = title or "Principal components of the patch features as red, green, blue"
    sheet = Sheet(2 * rows, columns, title)
    for index, (picture, color) in enumerate(zip(pictures, colors)):
        row, column = divmod(index, columns)
        sheet.image(2 * row, column, picture.shown, picture.name)
        sheet.patches(2 * row + 1, column, picture, np.asarray(color))
    return sheet.save(path)


def plot_patch_pca(network: Backbone, transform: EvalTransform, pictures: Sequence[Picture], path: Path) -> Path:
    """Draws images, prepared by `transform`, with the colours of all their patches to a PNG file."""
    backbone = FeatureExtractor.of(network, transform, device=next(network.parameters()).device)
    colors = pca_colors([patch_features(backbone, picture) for picture in pictures])
    return draw_pca(pictures, colors, path)


def _otsu(values: Tensor) -> float | None:
    """The threshold that parts values `[N]` in two with the largest variance between the parts; None if all are equal.

    Exact: every place between two neighbours is tried (Otsu 1979).
    """
    ordered = values.double().sort().values
    if len(ordered) < 2 or ordered[-1] - ordered[0] <= 1e-6 * ordered.abs().max():
        return None
    below = torch.arange(1, len(ordered), dtype=torch.float64, device=ordered.device)
    above = len(ordered) - below
    sums = ordered.cumsum(0)[:-1]
    between = below * above * (sums / below - (ordered.sum() - sums) / above) ** 2
    place = int(between.argmax())
    return float((ordered[place] + ordered[place + 1]) / 2)


def _border(height: int, width: int) -> Tensor:
    """Flags `[height, width]` of the patches at the edge of an image."""
    border = torch.ones(height, width, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return border


def _quantile(values: Tensor, share: float) -> Tensor:
    """`torch.quantile` of columns `[N, C]`, which refuses more than 16 million values."""
    place = share * (len(values) - 1)
    ordered = values.sort(dim=0).values
    below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    return below + (above - below) * (place - int(place))


def _joined(features: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(0, 1) for part in features])


def _split(values: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Values of all patches of all images, image by image."""
    counts = [part.shape[0] * part.shape[1] for part in features]
    return [values.unflatten(0, part.shape[:2]) for values, part in zip(values.split(counts), features)]
