"""A batch as a picture: the crops as the model sees them, with the masks drawn on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..config import RunConfig
from ..files import SOFTWARE, beside
from .broken import Broken
from .loader import TrainingBatches
from .photometric import PhotometricAugmentation
from .sources.training import open_training_source

_GAP, _HEADER = 6, 22
_INK, _PAPER, _MASK = (40, 40, 40), (255, 255, 255), (230, 60, 60)


def draw_sheet(config: RunConfig, num_images: int, path: Path) -> list[Broken]:
    """Draws the first images of the run, a row each, to `path`: global crops, masked patches tinted, then local crops.

    Returns:
        What cannot be read.
    """
    config = replace(config, train=replace(config.train, batch_size=num_images))
    source = open_training_source(config.data, config.train.seed)
    batch = TrainingBatches(source, config, 0, 1).batch(0)
    batch = PhotometricAugmentation(config.colors)(batch)
    global_size, local_size = config.crops.global_size, config.crops.local_size
    globals_ = [_pixels(crops, config) for crops in batch.global_crops.chunk(2)]
    locals_ = [_pixels(crops, config) for crops in batch.local_crops.split(num_images) if len(crops)]
    masks = batch.masks.chunk(2)

    # local crops fill the height of a global one, top to bottom and then to the right
    stacked = max((global_size + _GAP) // (local_size + _GAP), 1)
    row_height = max(global_size, local_size * bool(locals_)) + _GAP
    local_left = _GAP + 2 * (global_size + _GAP)
    width = local_left + -(-len(locals_) // stacked) * (local_size + _GAP)
    sheet = Image.new("RGB", (width, _HEADER + num_images * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    titles = [(_GAP, "global view 1"), (_GAP + global_size + _GAP, "global view 2")]
    for left, title in titles + [(local_left, "local views")] * bool(locals_):
        draw.text((left, 6), title, fill=_INK)
    for row in range(num_images):
        top = _HEADER + row * row_height
        for view, pixels in enumerate(globals_):
            tinted = _tint(pixels[row], masks[view][row], config.model.stride)
            sheet.paste(Image.fromarray(tinted), (_GAP + view * (global_size + _GAP), top))
        for view, pixels in enumerate(locals_):
            column, place = divmod(view, stacked)
            corner = (local_left + column * (local_size + _GAP), top + place * (local_size + _GAP))
            sheet.paste(Image.fromarray(pixels[row]), corner)
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    with beside(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=about)
    return [Broken(*values) for values in batch.broken]


def _pixels(crops: Tensor, config: RunConfig) -> np.ndarray:
    """Normalised crops `[B, C, H, W]` as uint8 `[B, H, W, 3]`; of other than 3 channels the first, in grey."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.colors.mean, config.colors.std))
    values = (crops * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    values = values if values.shape[1] == 3 else values[:, :1].expand(-1, 3, -1, -1)
    return values.permute(0, 2, 3, 1).contiguous().numpy()


def _tint(pixels: np.ndarray, mask: Tensor, patch_size: int) -> np.ndarray:
    """Masked patches of an image `[H, W, 3]` in the colour of the mask, with what is below shining through."""
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    masked = mask.view(rows, columns).numpy().repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    tinted = pixels.copy()
    tinted[masked] = (0.35 * pixels[masked] + 0.65 * np.array(_MASK)).astype(np.uint8)
    return tinted
