"""What is like a chosen patch: the cosine of its features and those of all patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .pictures import Picture
from .sheet import Sheet

_MOST_IN_A_ROW = 6


def similarity_maps(features: Sequence[Tensor], image: int, row: int, column: int) -> list[Tensor]:
    """Cosines of one patch and all patches of images `[h, w, D]`: `[h, w]` for each.

    Args:
        image: index of the image that the patch is of.
        row, column: its place, from 0 at the top left.

    Raises:
        ValueError: no such image or patch.
    """
    if not 0 <= image < len(features):
        raise ValueError(f"image {image} of {len(features)}; count from 0")
    height, width = features[image].shape[:2]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"patch ({row}, {column}) of an image of {height} x {width} patches; count from 0")
    chosen = normalize(features[image][row, column].float(), dim=0)
    return [normalize(part.float(), dim=2) @ chosen for part in features]


def patch_at(point: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Row and column of the patch at a point, given as shares of the width and the height of an image.

    Raises:
        ValueError: a point outside.
    """
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"point={x},{y} lies outside of the image; give shares of its width and height, as 0.5,0.25")
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def best_patch(similarity: Tensor) -> tuple[int, int, float]:
    """Row, column and cosine of the most similar patch of a map `[h, w]`."""
    place = int(similarity.argmax())
    return *divmod(place, similarity.shape[1]), float(similarity.flatten()[place])


def similarity_range(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Lowest and highest value of the scale of maps that are shown together: the 5th percentile of all, and 1.

    A few patches that are unlike everything do not take the range.
    """
    values = torch.cat([part.flatten() for part in maps]).sort().values
    return float(values[len(values) // 20]), 1.0


def draw_similarity(
    pictures: Sequence[Picture], maps: Sequence[Tensor], image: int, row: int, column: int, path: Path, title: str = ""
) -> Path:
    """Draws images with the similarity to a chosen patch over them to a PNG file, all on one scale.

    The chosen patch has a frame; in the other images a ring lies around the most similar one.
    """
    columns = min(max(len(pictures), 3), _MOST_IN_A_ROW)
    rows = -(-len(pictures) // columns)
    title = title or f"Similarity to the framed patch of {pictures[image].name}"
    sheet = Sheet(2 * rows, columns, title, right=0.75)
    low, high = similarity_range(maps)
    for index, (picture, values) in enumerate(zip(pictures, maps)):
        place = divmod(index, columns)
        photograph = sheet.image(2 * place[0], place[1], picture.shown, picture.name)
        found_row, found_column, cosine = best_patch(values)
        label = "the patch itself: 1" if index == image else f"best patch: {cosine:.2f}"
        heat = sheet.heat(2 * place[0] + 1, place[1], picture, values.numpy(), low, high, label)
        for axis in (photograph, heat):
            if index == image:
                _mark(axis, picture, values, row, column, square=True)
            else:
                _mark(axis, picture, values, found_row, found_column, square=False)
    sheet.scale(low, high, "cosine")
    return sheet.save(path)


def _mark(axis, picture: Picture, values: Tensor, row: int, column: int, square: bool) -> None:
    from matplotlib.patches import Circle, Rectangle

    side = picture.pixels.shape[2] / values.shape[1]
    center = ((column + 0.5) * side, (row + 0.5) * side)
    size = max(side, picture.pixels.shape[2] / 20)  # to be seen at any size of the patch
    for color, width in (("black", 2.4), ("white", 1.2)):
        if square:
            corner = (center[0] - size / 2, center[1] - size / 2)
            axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=width))
        else:
            axis.add_patch(Circle(center, size * 0.7, fill=False, edgecolor=color, linewidth=width))
