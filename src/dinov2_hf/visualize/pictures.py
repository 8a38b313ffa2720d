"""Images as they are shown and as a backbone takes them, and the features of their patches.

Axes: `C` channels, `H`, `W` pixels, `h`, `w` rows and columns of patches, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config.checks import multiple_of_patch, positive
from ..data.crops import as_crop, resample
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding, open_image
from ..features import FeatureExtractor

PATCHES_A_SIDE = 37
"""Of the longer side where no size is given: 518 pixels with patches of 14, as in the paper's pictures."""


@dataclass(frozen=True)
class Picture:
    """An image whose sides are multiples of the patch, with nothing of it cut off."""

    name: str
    """What titles and messages call it."""
    pixels: np.ndarray
    """`[C, H, W]` of the type of training crops (`data.crops.as_crop`)."""

    @property
    def shown(self) -> np.ndarray:
        """uint8 `[H, W, 3]`; of other than 3 channels the first, in grey."""
        if len(self.pixels) == 3:
            return np.ascontiguousarray(self.pixels.transpose(1, 2, 0))
        grey = (self.pixels[:1] * 255).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey.transpose(1, 2, 0), 3, axis=2)


def open_picture(
    data: bytes,
    name: str,
    image_size: int,
    patch_size: int = 1,
    num_channels: int = 3,
    decoding: Decoding = DEFAULT_DECODING,
    most_pixels: int | None = None,
) -> Picture:
    """Decodes an image and resizes it, keeping its aspect ratio to the nearest patch.

    Args:
        image_size: of the longer side in pixels, a multiple of the patch.
        most_pixels: refuses, before it decodes, an image of which more pixels have to be decoded.

    Raises:
        BrokenImage: the bytes cannot be decoded.
        ValueError: the patch does not divide the size, or too many pixels.
    """
    positive("image_size", image_size)
    multiple_of_patch("image_size", image_size, patch_size)
    try:
        image = open_image(data, num_channels, decoding)
        scale = image_size / max(image.height, image.width)
        height, width = (max(round(side * scale / patch_size), 1) * patch_size for side in (image.height, image.width))
        reduction = 1 / scale / 2  # keep twice the pixels for a clean resize
        if most_pixels is not None and image.cost(reduction) > most_pixels:
            raise ValueError(
                f"{name} ({image.width:,} x {image.height:,} pixels) was left out: {most_pixels:,} pixels to "
                "decode are the most; make it smaller"
            )
        pixels, whole = image.decode(reduction)
    except BrokenImage as error:
        raise BrokenImage(f"{name} is not an image that can be read: {error}; give others") from None
    box = (0, 0, image.width * whole, image.height * whole)
    if len(pixels) == 3 and pixels.dtype == torch.uint8:  # as evaluation resizes
        resized = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        resized = resized.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return Picture(name, np.asarray(resized).transpose(2, 0, 1))
    return Picture(name, as_crop(resample(pixels, box, (height, width))).numpy())


def model_input(backbone: FeatureExtractor, picture: Picture) -> Tensor:
    """A picture as the backbone takes it, normalised, on its device: `[1, C, H, W]`."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture.pixels)).unsqueeze(0)
    return backbone.transform.normalize(pixels.to(backbone.device))


def patch_features(backbone: FeatureExtractor, picture: Picture) -> Tensor:
    """Features of the patches after the last block: `[h, w, D]`, float32, on the CPU, in memory of their own."""
    ((_, patches),) = backbone.features(model_input(backbone, picture), 1)
    return patches[0].permute(1, 2, 0).float().cpu().clone(memory_format=torch.contiguous_format)
