"""Segmentation and depth drawn over the images they are of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from ..data.opening import open_with_pillow
from .pictures import Picture
from .sheet import Sheet, distinct_colors, grey, shortened

IGNORED = 255
"""The label of pixels that belong to no class, as in ADE20k, Cityscapes and Pascal VOC."""
_LABEL_ALPHA, _DEPTH_ALPHA = 0.62, 0.8
_DEPTH_COLORS = "turbo_r"  # near is red
_MOST_IN_LEGEND = 20
_MOST_IN_A_ROW = 6


def read_map(data: bytes, name: str) -> np.ndarray:
    """A map of labels or depths `[H, W]`: a `.npy` array, or a picture of one channel, whose values are kept as stored.

    Raises:
        ValueError: neither.
    """
    remedy = "give a .npy array [H, W], or a PNG of one channel with a number for each pixel"
    try:
        if data.startswith(b"\x93NUMPY"):
            values = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            with open_with_pillow(io.BytesIO(data)) as image:
                values = np.asarray(image)  # of a palette: its indices
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{name} is not a map: {error}; {remedy}") from None
    if values.ndim != 2 or values.dtype.kind not in "buif" or not values.size:
        raise ValueError(f"{name} has values of shape {list(values.shape)} and type {values.dtype}; {remedy}")
    return values


def label_overlay(pixels: np.ndarray, labels: np.ndarray, ignored: int = IGNORED) -> np.ndarray:
    """An image `[H, W, 3]` with the colours of labels `[h, w]` over it: uint8 `[H, W, 3]`.

    A label has the same colour in every picture. Labels are enlarged without mixing, and pixels of the label `ignored`
    or of none (below 0) stay as they are.

    Raises:
        ValueError: labels that are not whole numbers.
    """
    labels = _whole(labels)
    known = (labels != ignored) & (labels >= 0)
    colors = distinct_colors(int(labels[known].max()) + 1 if known.any() else 1)
    layer = colors[np.where(known, labels, 0)]
    return _blend(pixels, layer, known * _LABEL_ALPHA)


def depth_overlay(pixels: np.ndarray, depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """An image `[H, W, 3]` in grey with the colours of depths `[h, w]` over it, near in red: uint8 `[H, W, 3]`.

    Pixels without a depth (not above 0, or not a number) stay grey.
    """
    import matplotlib

    known = _known_depth(depth)
    share = np.clip((np.where(known, depth, low) - low) / max(high - low, 1e-12), 0, 1)
    layer = matplotlib.colormaps[_DEPTH_COLORS](share, bytes=True)[..., :3]
    return _blend(grey(pixels), layer, known * _DEPTH_ALPHA)


def draw_labels(
    pictures: Sequence[Picture],
    maps: Sequence[np.ndarray],
    path: Path,
    names: Mapping[int, str] | None = None,
    ignored: int = IGNORED,
    title: str = "",
) -> Path:
    """Draws images with segmentations below them and a legend of what is in them to a PNG file.

    Args:
        maps: labels `[h, w]` of each image, of any size.
        names: of the labels; others have their number.
    """
    sheet, overlays = _rows(pictures, title or "Segmentation", right=2.0)
    shares: dict[int, float] = {}
    for draw, picture, labels in zip(overlays, pictures, maps):
        draw(label_overlay(picture.shown, labels, ignored))
        values, counts = np.unique(_whole(labels), return_counts=True)
        for value, pixels in zip(values.tolist(), counts.tolist()):
            if value != ignored and value >= 0:
                shares[value] = shares.get(value, 0) + pixels / np.size(labels) / len(maps)
    _legend(sheet, shares, names or {})
    return sheet.save(path)


def draw_depths(
    pictures: Sequence[Picture], maps: Sequence[np.ndarray], path: Path, unit: str = "m", title: str = ""
) -> Path:
    """Draws images with depths `[h, w]` below them, all on one scale, with a bar of colours, to a PNG file.

    Raises:
        ValueError: no depth in any of them.
    """
    known = np.concatenate([np.asarray(depth)[_known_depth(depth)].ravel() for depth in maps])
    if not len(known):
        raise ValueError("the maps have no depth above 0; give depths in metres, or other positive numbers")
    low, high = float(known.min()), float(known.max())
    sheet, overlays = _rows(pictures, title or "Depth", right=0.75)
    for draw, picture, depth in zip(overlays, pictures, maps):
        draw(depth_overlay(picture.shown, np.asarray(depth, dtype=np.float64), low, high))
    sheet.scale(low, high, f"depth ({unit})" if unit else "depth", _DEPTH_COLORS, upside_down=True)  # near at the top
    return sheet.save(path)


def _rows(pictures: Sequence[Picture], title: str, right: float):
    """A sheet with the images on it, and for each a function that draws what goes below it."""
    columns = min(max(len(pictures), 2), _MOST_IN_A_ROW)
    sheet = Sheet(2 * -(-len(pictures) // columns), columns, title, right=right)
    overlays = []
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.image(2 * row, column, picture.shown, picture.name)
        overlays.append(lambda pixels, row=row, column=column: sheet.image(2 * row + 1, column, pixels))
    return sheet, overlays


def _legend(sheet: Sheet, shares: Mapping[int, float], names: Mapping[int, str]) -> None:
    from matplotlib.patches import Patch

    if not shares:
        return
    colors = distinct_colors(max(shares) + 1) / 255
    largest = sorted(shares, key=shares.__getitem__, reverse=True)
    handles = [
        Patch(
            color=colors[label], label=f"{shortened(names.get(label, f'label {label}'))}  {100 * shares[label]:.1f} %"
        )
        for label in largest[:_MOST_IN_LEGEND]
    ]
    if len(largest) > _MOST_IN_LEGEND:
        handles.append(Patch(alpha=0, label=f"and {len(largest) - _MOST_IN_LEGEND} more"))
    sheet.figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False, handlelength=1.2)


def _whole(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        raise ValueError("labels are whole numbers, and these are not; are they depths? use --kind depth")
    return labels.astype(np.int64)


def _known_depth(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (np.nan_to_num(np.asarray(depth, dtype=np.float64)) > 0)


def _blend(pixels: np.ndarray, layer: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels `[H, W, 3]` under a layer `[h, w, 3]` with opacity `[h, w]`, which is enlarged to nearest pixels."""
    rows, columns = ((np.arange(side) * own / side).astype(int) for side, own in zip(pixels.shape[:2], layer.shape[:2]))
    layer, alpha = layer[rows][:, columns], alpha[rows][:, columns, None]
    return (pixels * (1 - alpha) + layer * alpha).round().astype(np.uint8)
