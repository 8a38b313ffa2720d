"""What the page shows: images with the features of their patches, and the pictures made of them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ..features import FeatureExtractor
from .attention import attention_maps, attention_range
from .pca import find_foreground, pca_colors
from .pictures import Picture, open_picture, patch_features
from .sheet import heat_colors
from .similarity import best_patch, similarity_maps, similarity_range

MOST_IMAGES, MOST_BYTES = 12, 20 << 20
"""On a page, and of one file."""
MOST_PIXELS = 50_000_000
"""Of an image, as far as it has to be decoded: large JPEG files are read at a smaller scale."""
_CONTEXT = 2
"""Patches around a match that are shown with it."""


@dataclass
class Entry:
    """An image on the board."""

    picture: Picture
    photo: str
    """The image as an address that holds it."""
    features: Tensor
    """`[h, w, D]`"""
    attention: Tensor | None
    """`[heads, h, w]`; None where the model has no CLS token."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.features.shape[:2]
        return rows, columns


@dataclass(frozen=True)
class Match:
    """The patch of an image that is most similar to the chosen one."""

    image: int
    row: int
    column: int
    cosine: float


@dataclass(frozen=True)
class Similarity:
    """Cosines of a chosen patch and all others."""

    maps: list[Tensor]
    """`[h, w]` of each image."""
    low: float
    high: float
    """Of the scale of colours."""
    matches: list[Match]
    """The best patch of every other image, the best image first."""

    def heat(self, image: int) -> np.ndarray:
        """The map of an image as uint8 RGBA `[h, w, 4]`."""
        return heat_colors(self.maps[image].numpy(), self.low, self.high)


class Board:
    """Images of one visitor and what the backbone says of them.

    Args:
        image_size: longer side in pixels, a multiple of the patch.
    """

    def __init__(self, backbone: FeatureExtractor, image_size: int) -> None:
        self.backbone, self.image_size = backbone, image_size
        self.entries: list[Entry] = []

    def look(self, data: bytes, name: str) -> Entry:
        """Decodes an image and passes it through the backbone; the caller adds it to `entries`.

        Raises:
            ValueError: not an image, or too large, or one too many.
        """
        if len(self.entries) >= MOST_IMAGES:
            raise ValueError(f"{name} was left out: {MOST_IMAGES} images are the most; remove others first")
        transform = self.backbone.transform
        picture = open_picture(
            data, name, self.image_size, self.backbone.stride, len(transform.mean), transform.decoding, MOST_PIXELS
        )
        features = patch_features(self.backbone, picture)
        return Entry(picture, data_uri(picture.shown), features, self._attention(picture))

    def remove(self, image: int) -> None:
        del self.entries[image]

    def colors(self, keep_background: bool) -> list[np.ndarray]:
        """Principal components of every image as uint8 RGBA `[h, w, 4]`."""
        features = [entry.features for entry in self.entries]
        colors = pca_colors(features, None if keep_background else find_foreground(features))
        return [(part.numpy() * 255).round().astype(np.uint8) for part in colors]

    def attention(self, image: int, head: int | None) -> np.ndarray | None:
        """Attention of a head (from 0; None: their mean) as uint8 RGBA `[h, w, 4]`; None where there is none."""
        maps = self.entries[image].attention
        if maps is None:
            return None
        values = maps.mean(dim=0) if head is None else maps[head]
        return heat_colors(values.numpy(), *attention_range(values))

    def similarity(self, image: int, row: int, column: int) -> Similarity:
        """Cosines of a patch and all others, of all images."""
        maps = similarity_maps([entry.features for entry in self.entries], image, row, column)
        matches = [Match(index, *best_patch(values)) for index, values in enumerate(maps) if index != image]
        matches.sort(key=lambda match: -match.cosine)
        return Similarity(maps, *similarity_range(maps), matches)

    def around(self, image: int, row: int, column: int) -> np.ndarray:
        """The pixels of a patch with what is around it, within the image: uint8 `[s, s, 3]`."""
        entry, patch = self.entries[image], self.backbone.stride
        slices = []
        for place, count in zip((row, column), entry.grid):
            side = min(2 * _CONTEXT + 1, *entry.grid)
            start = min(max(place - side // 2, 0), count - side)
            slices.append(slice(start * patch, (start + side) * patch))
        return entry.picture.shown[tuple(slices)]

    def _attention(self, picture: Picture) -> Tensor | None:
        try:
            return attention_maps(self.backbone, picture)
        except ValueError:  # the page says that there is none
            return None


def too_large(name: str, size: int) -> str:
    """The message about a file of more than `MOST_BYTES` bytes."""
    return f"{name} ({size / 2**20:.0f} MB) was left out: {MOST_BYTES >> 20} MB a file are the most; make it smaller"


def data_uri(pixels: np.ndarray) -> str:
    """Pixels as an address that holds them: JPEG for `[H, W, 3]`, PNG for RGBA `[h, w, 4]`."""
    buffer = io.BytesIO()
    kind = "png" if pixels.shape[2] == 4 else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
