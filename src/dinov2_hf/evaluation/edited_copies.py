"""Edited copies of images, made on the fly, after the edits of Copydays (Douze et al., 2009)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from ..config.evaluations.retrieval import COPIES
from ..data.crops import as_crop
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding, decoded, open_image
from ..features.extract import Images
from .descriptors import as_array, derived

_SIDE = 512  # of what is edited: more than any backbone is shown
_WORDS = "SALE NEWS LIVE BEST FREE TODAY WATCH FUNNY TRUE SHARE".split()


class Copies:
    """A copy of every image, each seeded by itself: the same on any process.

    Args:
        kind: one of `COPIES`.
        num_channels: 1 or 3.

    Raises:
        ValueError: other numbers of channels.
    """

    def __init__(
        self, images: Images, kind: str, seed: int, num_channels: int, decoding: Decoding = DEFAULT_DECODING
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"copies are made of images of 1 or 3 channels, and the model takes {num_channels}")
        self._images, self._kind, self._seed, self._num_channels = images, kind, seed, num_channels
        self._decoding = decoding
        self.fingerprint = derived(images.fingerprint, kind, seed, num_channels)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        data, name = self._images.read(index)
        try:
            image = open_image(data, 3, self._decoding)
            reduction = max(min(image.width, image.height) / _SIDE, 1)
            with decoded(image, reduction, self._decoding) as (pixels, _):
                pixels = as_crop(pixels)
        except BrokenImage:
            return data, name  # what decodes it next says so
        rng = np.random.default_rng([self._seed, index, COPIES.index(self._kind)])
        picture = make_copy(Image.fromarray(pixels.permute(1, 2, 0).numpy()), self._kind, rng)
        copied = np.asarray(picture.convert("L" if self._num_channels == 1 else "RGB"))
        return as_array(copied[None] if copied.ndim == 2 else copied.transpose(2, 0, 1)), name


def make_copy(picture: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """An edited copy of an RGB picture: one edit, or for `strong` most of them one after the other."""
    if kind == "crop":
        return _crop(picture, rng, 0.2)
    if kind == "jpeg":
        return _compress(picture, 0.5, 5)
    if kind == "rotate":
        return _rotate(picture, rng, (15, 45))
    if kind == "flip":
        return ImageOps.mirror(picture)
    if kind == "overlay":
        return _overlay(picture, rng)
    if kind == "color":
        return _print(picture, rng)
    assert kind == "strong", kind
    picture = _crop(picture, rng, rng.uniform(0.4, 0.7))
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = _print(_overlay(_rotate(picture, rng, (3, 15)), rng), rng)
    return _compress(picture, 0.6, 20)


def _crop(picture: Image.Image, rng: np.random.Generator, area: float) -> Image.Image:
    """This share of the area, in the same proportions, anywhere."""
    width, height = (max(round(side * area**0.5), 1) for side in picture.size)
    left, top = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(picture.size, (width, height)))
    return picture.crop((left, top, left + width, top + height))


def _compress(picture: Image.Image, scale: float, quality: int) -> Image.Image:
    """Smaller, and with the marks of JPEG."""
    small = picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer, formats=("JPEG",)).convert("RGB")


def _rotate(picture: Image.Image, rng: np.random.Generator, degrees: tuple[float, float]) -> Image.Image:
    """Either way, on a plain ground that has room for the corners."""
    angle = rng.uniform(*degrees) * rng.choice((-1, 1))
    ground = tuple(int(value) for value in rng.integers(0, 256, 3))
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=ground)


def _overlay(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Words on a bar, and a few plates, over about a quarter of the picture."""
    picture = picture.copy()
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for _ in range(3):
        wide, high = rng.uniform(0.15, 0.3) * width, rng.uniform(0.15, 0.3) * height
        left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + wide, top + high), fill=tuple(map(int, rng.integers(0, 256, 3))))
    size = max(height // 8, 4)
    top = int(rng.integers(0, max(height - 2 * size, 1)))
    draw.rectangle((0, top, width, top + 1.4 * size), fill=tuple(map(int, rng.integers(0, 100, 3))))
    words = " ".join(rng.choice(_WORDS, 6))
    draw.text(
        (size // 4, top), words, fill=tuple(map(int, rng.integers(180, 256, 3))), font=ImageFont.load_default(size)
    )
    return picture


def _print(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As printed and photographed: other colours, less contrast, uneven light, blur, grain."""
    width, height = picture.size
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5) * min(width, height) / _SIDE * 2))
    values = np.asarray(blurred, dtype=float) / 255
    grey = values.mean(axis=2, keepdims=True)
    values = grey + rng.uniform(0.2, 0.7) * (values - grey)
    values = (rng.uniform(0.1, 0.25) + rng.uniform(0.5, 0.7) * values) ** rng.uniform(0.7, 1.5)
    values *= rng.uniform(0.8, 1.15, 3)
    slope = rng.uniform(-0.25, 0.25, 2)
    values *= 1 + slope[0] * np.linspace(-1, 1, height)[:, None, None] + slope[1] * np.linspace(-1, 1, width)[:, None]
    values += rng.normal(0, 0.03, values.shape)
    return Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))
