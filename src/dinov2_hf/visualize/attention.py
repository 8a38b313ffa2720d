"""Where CLS looks: attention of the last block, head by head (DINO, section 4.2.2, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..features import FeatureExtractor
from .pictures import Picture, model_input
from .sheet import Sheet

_MOST_IN_A_ROW = 8


@torch.no_grad()
def attention_maps(backbone: FeatureExtractor, picture: Picture) -> Tensor:
    """How much of each head's attention CLS gives to each patch: shares `[heads, h, w]`, on the CPU.

    What goes to CLS itself and to registers is left out, so that the shares of a head sum to less than 1. The memory is
    their own: nothing of the attention of other tokens is kept.

    Raises:
        ValueError: a backbone without attention of a CLS token to patches, or whose network is not at hand.
    """
    if backbone.module is None:
        raise ValueError(f"{backbone.name} gives only features; for attention take the model itself")
    attention = getattr(backbone.module, "attention", None)
    if attention is None:
        raise ValueError(f"{backbone.name} has no attention of CLS to patches; take a vision transformer")
    return attention(model_input(backbone, picture))[0].float().cpu().clone(memory_format=torch.contiguous_format)


def draw_attention(pictures: Sequence[Picture], attention: Sequence[Tensor], path: Path, title: str = "") -> Path:
    """Draws images with the mean of the heads and with each head `[heads, h, w]` over them to a PNG file.

    Each map has its own scale, from 0 to its 99th percentile: some heads look at everything, others at one patch.
    """
    panels = 2 + max(len(maps) for maps in attention)
    columns = min(panels, _MOST_IN_A_ROW)
    rows = -(-panels // columns)
    title = title or "Attention of CLS in the last block, each map from 0 (dark) to its largest values (bright)"
    sheet = Sheet(rows * len(pictures), columns, title)
    for index, (picture, maps) in enumerate(zip(pictures, attention)):
        sheet.image(rows * index, 0, picture.shown, picture.name)
        named = [
            ("mean", maps.mean(dim=0)),
            *((f"head {head}", values) for head, values in enumerate(maps, 1)),
        ]
        for panel, (name, values) in enumerate(named, 1):
            row, column = divmod(panel, columns)
            label = f"{name}, max {100 * float(values.max()):.2g} %"
            sheet.heat(rows * index + row, column, picture, values.numpy(), *attention_range(values), label)
    return sheet.save(path)


def attention_range(values: Tensor) -> tuple[float, float]:
    """Lowest and highest value of the scale of a map: 0 and its 99th percentile."""
    return 0.0, float(values.flatten().quantile(0.99))
