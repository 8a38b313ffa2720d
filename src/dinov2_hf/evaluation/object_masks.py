"""Object masks as pictures: tinted frames, and index masks as palette PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import beside
from .metrics.video import VOID, boundary

_GAP, _TEXT, _WIDTH = 8, 15, 320
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def palette(count: int = 256) -> np.ndarray:
    """The colours of Pascal VOC and DAVIS by index, `[count, 3]`: the bits of an index, from the highest one on."""
    indices = np.arange(count)
    bits = [[(indices >> (3 * place + channel) & 1) << (7 - place) for place in range(3)] for channel in range(3)]
    return np.array(bits).sum(axis=1).T.astype(np.uint8)


def save_index_mask(mask: np.ndarray, path: Path) -> None:
    """Writes an index mask `[H, W]` as a PNG file with the colours of DAVIS."""
    picture = Image.fromarray(mask.astype(np.uint8), "L")
    picture.putpalette(palette().ravel().tolist())
    with beside(path) as temporary:
        picture.save(temporary)


def tint(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame `[H, W, 3]` with the objects of an index mask `[H, W]` in their colours, and their outlines."""
    shown = (mask != 0) & (mask != VOID)
    colors = palette()[mask]
    tinted = pixels.copy()
    tinted[shown] = (0.45 * pixels[shown] + 0.55 * colors[shown]).astype(np.uint8)
    for index in np.unique(mask[shown]):
        inside = mask == index
        # of the two pixels on either side of an edge that within the object
        tinted[inside & (boundary(inside) | boundary(inside[::-1, ::-1])[::-1, ::-1])] = 255
    return tinted


def save_contact_sheet(
    columns: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray, str]], rows: Sequence[str], path: Path
) -> None:
    """Draws frames side by side: above with their true masks, where there are any, below with those predicted.

    Args:
        columns: frame `[H, W, 3]`, true and predicted index mask `[H, W]`, and title of each.
        rows: what to call the two rows.
        path: of the PNG file.
    """
    height, width = columns[0][2].shape
    scale = _WIDTH / width
    size, font = (_WIDTH, max(round(height * scale), 1)), ImageFont.load_default(_TEXT)
    left = max(round(font.getlength(row)) for row in rows) + 2 * _GAP
    top = _TEXT + 2 * _GAP
    sheet = Image.new("RGB", (left + len(columns) * (size[0] + _GAP), top + 2 * (size[1] + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        draw.text((_GAP, top + row * (size[1] + _GAP) + size[1] // 2), name, _INK, font, anchor="lm")
    for column, (frame, true, found, title) in enumerate(columns):
        x = left + column * (size[0] + _GAP)
        draw.text((x + size[0] // 2, _GAP), title, _INK, font, anchor="ma")
        picture = np.array(Image.fromarray(frame).resize(size))
        for row, mask in enumerate((true, found)):
            y = top + row * (size[1] + _GAP)
            if mask is not None:
                small = np.array(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
                sheet.paste(Image.fromarray(tint(picture, small)), (x, y))
            else:
                draw.text((x + size[0] // 2, y + size[1] // 2), "no mask", _INK, font, anchor="mm")
    with beside(path) as temporary:
        sheet.save(temporary)
