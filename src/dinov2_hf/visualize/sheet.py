"""Sheets of images: what all pictures have in common. Each is drawn without matplotlib's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import SOFTWARE, beside
from .pictures import Picture

CELL, DPI = 1.9, 100
"""Side of a cell in inches, and pixels of an inch."""
_LONGEST_TITLE = 26
_HEAT = "magma"
_HEAT_ALPHA = (0.5, 0.9)  # of the lowest and the highest value: what is of no interest stays a photograph


class Sheet:
    """Rows and columns of images with titles, to be written as a PNG file.

    Args:
        title: a line over all of them.
        cell: side of a cell in inches.
        right: inches beside the cells, for a legend or a bar of colours.
    """

    def __init__(self, rows: int, columns: int, title: str, cell: float = CELL, right: float = 0.0) -> None:
        from matplotlib.figure import Figure

        # 0.27 inches for the titles of a row, 0.45 for that of the sheet
        self.figure = Figure(
            figsize=(columns * cell + right, rows * (cell + 0.27) + 0.45), layout="constrained", dpi=DPI
        )
        layout: Any = self.figure.get_layout_engine()
        layout.set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
        self.axes = self.figure.subplots(rows, columns, squeeze=False)
        for axis in self.axes.flat:
            axis.axis("off")
            axis.set_anchor("N")  # titles of a row on one line
        wide = columns * cell * 11  # letters that fit
        self.figure.suptitle(shortened(title, int(wide)), fontsize=11, parse_math=False)

    def image(self, row: int, column: int, pixels: np.ndarray, title: str = ""):
        """Draws pixels `[H, W, 3]` or `[H, W, 4]` with a title above; returns the axis."""
        axis = self.axes[row, column]
        axis.imshow(pixels, interpolation="antialiased")
        if title:
            axis.set_title(shortened(title), fontsize=8, pad=3, parse_math=False)
        return axis

    def patches(self, row: int, column: int, picture: Picture, colors: np.ndarray, title: str = ""):
        """Draws the colours of patches `[h, w, 3 or 4]` in the place of the image they are of; returns the axis."""
        axis = self.axes[row, column]
        height, width = picture.pixels.shape[1:]
        axis.imshow(colors, interpolation="nearest", extent=(0, width, height, 0))
        if title:
            axis.set_title(shortened(title), fontsize=8, pad=3, parse_math=False)
        return axis

    def heat(self, row: int, column: int, picture: Picture, values: np.ndarray, low: float, high: float, title=""):
        """Draws values of patches `[h, w]` over the image in grey; returns the axis."""
        axis = self.image(row, column, grey(picture.shown), title)
        self.patches(row, column, picture, heat_colors(values, low, high) / 255)
        return axis

    def scale(self, low: float, high: float, label: str, colors: str = _HEAT, upside_down: bool = False) -> None:
        """Adds a bar of colours: those of `heat`, or another map of colours of matplotlib."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        mappable = ScalarMappable(Normalize(low, high), colors)
        bar = self.figure.colorbar(mappable, ax=self.axes, shrink=0.7, aspect=22, pad=0.01, panchor=False)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        if upside_down:
            bar.ax.invert_yaxis()

    def save(self, path: Path) -> Path:
        """Writes the PNG file, making its folder where there is none."""
        with beside(path) as temporary:
            self.figure.savefig(temporary, format="png", metadata={"Software": SOFTWARE})
        return path


def heat_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as the colours of heat that let what is below shine through: uint8 RGBA `[..., 4]`."""
    import matplotlib

    share = np.clip((np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12), 0, 1)
    colors = matplotlib.colormaps[_HEAT](share, bytes=True)
    colors[..., 3] = np.round(np.interp(share, (0, 1), _HEAT_ALPHA) * 255)
    return colors


def grey(pixels: np.ndarray) -> np.ndarray:
    """Pixels `[H, W, 3]` without their colours, so that heat can be told from them."""
    luma = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luma.round().astype(np.uint8)[..., None], 3, axis=2)


def shortened(text: str, longest: int = _LONGEST_TITLE) -> str:
    """A text of at most so many letters, with its start and its end."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    start = (longest - 1) * 2 // 3
    return f"{text[:start]}…{text[len(text) - (longest - 1 - start) :]}"


def distinct_colors(count: int) -> np.ndarray:
    """Colours that can be told apart, uint8 `[count, 3]`: hues by the golden ratio, in four lightnesses."""
    from matplotlib.colors import hsv_to_rgb

    index = np.arange(count)
    hues = (0.02 + index * 0.61803398875) % 1
    saturation = np.choose(index % 4, (0.85, 0.55, 0.95, 0.35))
    value = np.choose(index % 4, (0.95, 0.8, 0.6, 0.98))
    return (hsv_to_rgb(np.stack((hues, saturation, value), axis=1)) * 255).round().astype(np.uint8)
