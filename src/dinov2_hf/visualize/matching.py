"""Patches of two images that match (DINOv2, section 7.5, figure 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .pictures import Picture
from .sheet import Sheet


@dataclass(frozen=True)
class Matches:
    """Pairs of patches, the most similar first."""

    first: Tensor
    """Row and column in the first image, `[M, 2]`."""
    second: Tensor
    """Row and column in the second image, `[M, 2]`."""
    cosine: Tensor
    """`[M]`"""

    def __len__(self) -> int:
        return len(self.cosine)


def mutual_neighbours(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of vectors `[N, D]` and `[M, D]` that are each other's nearest: two indices and the cosine, `[K]` each."""
    cosines = normalize(first.float(), dim=1) @ normalize(second.float(), dim=1).T
    forth, back = cosines.argmax(dim=1), cosines.argmax(dim=0)
    index = torch.arange(len(first), device=first.device)
    mutual = back[forth] == index
    index, other = index[mutual], forth[mutual]
    return index, other, cosines[index, other]


def match_patches(
    first: Tensor,
    second: Tensor,
    masks: tuple[Tensor, Tensor] | None = None,
    count: int = 20,
    spacing: int = 2,
) -> Matches:
    """The most similar pairs of patches `[h, w, D]` of two images that are each other's nearest.

    The paper solves an assignment problem and suppresses what is not salient; that of two patches each is the other's
    nearest asks for more, and gives no match to what has no counterpart.

    Args:
        masks: flags `[h, w]` of the patches that take part, such as those of `find_foreground`.
        count: pairs at most.
        spacing: rows or columns at least between the patches of two pairs in either image, so that the pairs are
            not all in one place.
    """
    taken: Sequence[Tensor] = masks or [torch.ones(part.shape[:2], dtype=torch.bool) for part in (first, second)]
    places = [mask.nonzero() for mask in taken]
    empty = Matches(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    if not all(map(len, places)):
        return empty
    index, other, cosine = mutual_neighbours(first[taken[0]], second[taken[1]])
    order = cosine.argsort(descending=True, stable=True)
    pairs = torch.cat((places[0][index[order]], places[1][other[order]]), dim=1)  # [K, 4]
    kept: list[int] = []
    for candidate in range(len(pairs)):
        if len(kept) == count:
            break
        apart = (pairs[kept] - pairs[candidate]).abs().unflatten(1, (2, 2)).amax(dim=2)  # [kept, 2]
        if (apart >= spacing).all():
            kept.append(candidate)
    return Matches(pairs[kept][:, :2], pairs[kept][:, 2:], cosine[order][kept])


def draw_matches(
    pictures: tuple[Picture, Picture],
    grids: tuple[tuple[int, int], tuple[int, int]],
    matches: Matches,
    path: Path,
    title="",
) -> Path:
    """Draws two images with a line for each pair of patches to a PNG file.

    Colours go around the colour circle from the top of the first image to its bottom.

    Args:
        grids: rows and columns of patches of each image.
    """
    from matplotlib import colormaps
    from matplotlib.patches import ConnectionPatch

    title = title or f"{len(matches)} pairs of patches that are each other's nearest"
    sheet = Sheet(1, 2, title, cell=4.2)
    axes = [sheet.image(0, column, picture.shown, picture.name) for column, picture in enumerate(pictures)]
    layout: Any = sheet.figure.get_layout_engine()
    layout.set(wspace=0.08)
    points = []
    for picture, grid, places in zip(pictures, grids, (matches.first, matches.second)):
        height, width = picture.pixels.shape[1:]
        points.append(
            [((column + 0.5) * width / grid[1], (row + 0.5) * height / grid[0]) for row, column in places.tolist()]
        )
    order = sorted(range(len(matches)), key=lambda pair: points[0][pair][::-1])
    for rank, pair in enumerate(order):
        color = colormaps["gist_rainbow"](rank / max(len(order), 1))
        ends = [points[0][pair], points[1][pair]]
        line = ConnectionPatch(
            ends[0], ends[1], "data", "data", axesA=axes[0], axesB=axes[1], color=color, linewidth=1.3
        )
        line.set_in_layout(False)
        sheet.figure.add_artist(line)
        for axis, (x, y) in zip(axes, ends):
            axis.plot(x, y, "o", markersize=6, color=color, markeredgecolor="white", markeredgewidth=1.0)
    return sheet.save(path)
