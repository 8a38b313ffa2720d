"""What each head of the last block looks at, as areas in its colour (DINO, figures 3 and 4), of images and of videos.

Axes: `H`, `W` pixels, `h`, `w` rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .pictures import Picture
from .sheet import Sheet, grey

MASS = 0.6
"""Share of the attention of a head that its area keeps, as published."""
_MOST_IN_A_ROW = 8
_COLOR, _GROUND = 0.6, 0.45  # weight of the colour of a head; brightness of what no head looks at


def attention_masks(attention: Tensor, mass: float = MASS) -> Tensor:
    """The smallest area that has a share of a head's attention to patches: `[heads, h, w]`, bool.

    Args:
        attention: of each head to patches, `[heads, h, w]`; what goes to CLS and registers does not count.
        mass: the share that is kept, above 0 and at most 1.

    Raises:
        ValueError: another share.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass={mass:g} is not a share of the attention; give a number above 0 and at most 1")
    values = attention.double().flatten(1)
    shares, order = (values / values.sum(dim=1, keepdim=True)).sort(dim=1, descending=True)
    before = shares.cumsum(dim=1) - shares  # of the patches that are looked at more
    kept = (before < mass - 1e-9) & (shares > 0)
    return torch.zeros_like(kept).scatter_(1, order, kept).unflatten(1, attention.shape[1:])


def head_colors(count: int) -> np.ndarray:
    """The colour of each head, the same in every picture of a model: uint8 `[count, 3]`."""
    from matplotlib.colors import hsv_to_rgb

    index = np.arange(count)
    hues, dark = index / count, index % 2
    colors = hsv_to_rgb(np.stack((hues, 0.95 - 0.25 * dark, 0.95 - 0.25 * dark), axis=1))
    return (colors * 255).round().astype(np.uint8)


def color_heads(picture: Picture, attention: Tensor, masks: Tensor, heads: Sequence[int] | None = None) -> np.ndarray:
    """A picture in grey with the areas of heads in their colours: uint8 `[H, W, 3]`.

    Where areas overlap, a patch has the colour of the head that gives it the largest share of its attention.

    Args:
        attention: `[heads, h, w]`.
        masks: of `attention_masks`.
        heads: those that are shown, from 0; None: all.
    """
    shown = list(range(len(attention))) if heads is None else list(heads)
    shares = (attention / attention.sum(dim=(1, 2), keepdim=True)).where(masks, -1.0)[shown]
    best, winner = shares.max(dim=0)
    colors = head_colors(len(attention))[shown][winner.numpy()].astype(float)
    height, width = picture.pixels.shape[1:]
    repeats = height // attention.shape[1], width // attention.shape[2]
    taken, colors = (_enlarged(values, repeats) for values in ((best >= 0).numpy(), colors))
    ground = grey(picture.shown).astype(float)
    mixed = np.where(taken[..., None], (1 - _COLOR) * ground + _COLOR * colors, _GROUND * ground)
    return mixed.round().astype(np.uint8)


def draw_attention_masks(
    pictures: Sequence[Picture], attention: Sequence[Tensor], path: Path, mass: float = MASS, title: str = ""
) -> Path:
    """Draws each image, beside it all heads in their colours, then each head by itself, to a PNG file.

    Args:
        attention: of each picture, `[heads, h, w]`.
        mass: as in `attention_masks`.
    """
    panels = 2 + max(len(maps) for maps in attention)
    columns = min(panels, _MOST_IN_A_ROW)
    rows = -(-panels // columns)
    sheet = Sheet(rows * len(pictures), columns, title or f"Areas: {mass_in_words(mass)}")
    for index, (picture, maps) in enumerate(zip(pictures, attention)):
        masks = attention_masks(maps, mass)
        sheet.image(rows * index, 0, picture.shown, picture.name)
        sheet.image(rows * index, 1, color_heads(picture, maps, masks), "all heads")
        for head in range(len(maps)):
            row, column = divmod(2 + head, columns)
            area = 100 * float(masks[head].double().mean())
            label = f"head {head + 1}, {area:.2g} % of the area"
            sheet.image(rows * index + row, column, color_heads(picture, maps, masks, [head]), label)
    return sheet.save(path)


def mass_in_words(mass: float) -> str:
    """What the areas are, for titles."""
    return f"the patches that get {100 * mass:g} % of each head's attention of CLS in the last block"


def _enlarged(values: np.ndarray, repeats: tuple[int, int]) -> np.ndarray:
    """Values of patches `[h, w, ...]` at their pixels."""
    return values.repeat(repeats[0], axis=0).repeat(repeats[1], axis=1)
