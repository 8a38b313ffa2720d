"""Pictures of the report: sheets of thumbnails, a row for each group, and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.decode import BrokenImage, open_image
from ..files import beside

_SIDE = 112
_GREEN, _RED, _GREY, _BLUE = "#2a9d5c", "#c0392b", "#8a8f98", "#2563a8"
FRAMES = {"kept": _GREEN, "dropped": _RED, "query": _BLUE, "": "#dddddd"}
"""Colours of the frames of thumbnails, by what they say."""


@dataclass(frozen=True)
class Tile:
    """A thumbnail with a frame and a line under it."""

    data: bytes
    caption: str = ""
    frame: str = ""
    """A key of `FRAMES`."""


def thumbnail(data: bytes) -> np.ndarray:
    """The whole image within a white square `[112, 112, 3]` uint8; a cross where it cannot be decoded."""
    sheet = Image.new("RGB", (_SIDE, _SIDE), "white")
    try:
        image = open_image(data)
        pixels, _ = image.decode(max(max(image.width, image.height) / _SIDE / 2, 1.0))
    except BrokenImage:
        return np.asarray(sheet)
    values = pixels.permute(1, 2, 0).contiguous().numpy()
    if values.dtype != np.uint8:
        values = (values * 255).round().astype(np.uint8)
    picture = Image.fromarray(values)
    scale = _SIDE / max(picture.size)
    size = [max(round(side * scale), 1) for side in picture.size]
    sheet.paste(
        picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC),
        ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2),
    )
    return np.asarray(sheet)


def draw_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Tile]]], columns: int) -> None:
    """Draws rows of tiles, each with a label at its left; of a row the first `columns`."""
    from matplotlib.figure import Figure

    label = 1.2 if any(text for text, _ in rows) else 0.15
    captions = 0.24 if any(tile.caption for _, tiles in rows for tile in tiles) else 0.06
    columns = min(columns, max(len(tiles) for _, tiles in rows))
    step_x, step_y = 1.22, 1.12 + captions
    width, height = label + columns * step_x, len(rows) * step_y + 0.06
    figure = Figure(figsize=(width, height), facecolor="white")
    for number, (text, tiles) in enumerate(rows):
        bottom = height - (number + 1) * step_y + captions
        figure.text(0.1 / width, (bottom + 0.53) / height, text, fontsize=8, va="center", color="#333")
        for column, tile in enumerate(tiles[:columns]):
            left = label + column * step_x
            axis = figure.add_axes((left / width, bottom / height, 1.08 / width, 1.06 / height))
            axis.imshow(thumbnail(tile.data))
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set(edgecolor=FRAMES[tile.frame], linewidth=2.2 if tile.frame else 0.6)
            if tile.caption:
                place = ((left + 0.54) / width, (bottom - 0.14) / height)
                figure.text(*place, tile.caption, fontsize=7, ha="center", color="#555")
    _save(figure, path)


def draw_histogram(
    path: Path, series: dict[str, np.ndarray], lines: dict[str, float], label: str, unit: str = "images"
) -> None:
    """Draws distributions of similarities, on one scale, with vertical lines at thresholds."""
    from matplotlib.figure import Figure

    values = np.concatenate(list(series.values()))
    low = min([*lines.values(), float(values.min(initial=1.0))])
    bins: Any = np.linspace(max(low - 0.03, -1.0), 1.0, 61)
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, own), color in zip(series.items(), (_BLUE, "#e08a1e", _GREEN, _GREY)):
        axis.hist(own, bins=bins, histtype="stepfilled", alpha=0.45, color=color, label=f"{name} ({len(own):,})")
    for (name, value), style in zip(lines.items(), ("-", "--")):
        axis.axvline(value, color=_RED, linestyle=style, linewidth=1.3, label=f"{name} = {value:g}")
    axis.set(xlabel=label, ylabel=unit, xlim=(bins[0], bins[-1]))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _save(figure, path: Path) -> None:
    with beside(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
