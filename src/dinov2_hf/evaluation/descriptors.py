"""Images as vectors that are compared by their cosine: CLS and pooled patches, several scales, whitening.

Axes: `N` images, `D` width.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from ..config import SourceConfig
from ..config.evaluations.retrieval import DescriptorConfig
from ..data import EvalTransform
from ..data.crops import as_crop, resample
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding, decoded, open_image
from ..data.photometric import as_unit, normalize
from ..data.sources import find_images, load
from ..data.transform import Size
from ..features.extract import Images
from .base import Evaluation, given


class PlainImages:
    """Images at `config.path` with the other columns of their table, `table`.

    Raises:
        ValueError: nothing there that can be read.
    """

    def __init__(self, config: SourceConfig, name: str) -> None:
        loaded = load(given(config, name), streaming=False, name=name)
        self.where = f"{config.path} (split {config.split!r})"
        self.table = loaded.dataset
        self._images = find_images(loaded, config)

    @property
    def fingerprint(self) -> str | None:
        """Of the images and their order."""
        return self._images.fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        return self._images.read(index)


class BoxedImages:
    """Images cut to a box `[left, top, right, bottom]` each, in pixels; what lies outside of an image is left out."""

    def __init__(
        self, images: Images, boxes: np.ndarray, num_channels: int, decoding: Decoding = DEFAULT_DECODING
    ) -> None:
        self._images, self._boxes, self._num_channels, self._decoding = images, boxes, num_channels, decoding
        self.fingerprint = derived(images.fingerprint, boxes.tolist())

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        data, name = self._images.read(index)
        try:
            image = open_image(data, self._num_channels, self._decoding)
            with decoded(image, 1.0, self._decoding) as (pixels, _):
                height, width = pixels.shape[1:]
                left, top, right, bottom = np.rint(self._boxes[index]).astype(int)
                left, top = np.clip((left, top), 0, (width - 1, height - 1))
                part = pixels[:, top : max(bottom, top + 1), left : max(right, left + 1)]
                return as_array(part.numpy()), name
        except BrokenImage:
            return data, name  # what decodes it next says so


@dataclass(frozen=True)
class WholeTransform:
    """The whole image squeezed into one size, and normalised."""

    crop_size: int | Size
    mean: Sequence[float]
    std: Sequence[float]
    decoding: Decoding = DEFAULT_DECODING

    @property
    def size(self) -> Size:
        """Height and width of the crops in pixels."""
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size

    def pixels(self, data: bytes) -> np.ndarray:
        """An encoded image as `[C, *size]`, of the type of training crops (`data.crops.as_crop`).

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        image = open_image(data, len(self.mean), self.decoding)
        reduction = min(image.height / self.size[0], image.width / self.size[1]) / 2
        with decoded(image, reduction, self.decoding) as (pixels, scale):
            box = (0, 0, image.width * scale, image.height * scale)
            return as_crop(resample(pixels, box, self.size)).numpy()

    def normalize(self, pixels: Tensor) -> Tensor:
        return normalize(as_unit(pixels), self.mean, self.std)


@dataclass
class Whitening:
    """Principal directions of descriptors, each scaled to unit variance."""

    mean: Tensor
    projection: Tensor
    """`[D, dim]`."""

    @classmethod
    def learn(cls, vectors: Tensor, dim: int = 0) -> Whitening:
        """Of vectors `[N, D]`; directions in which they do not vary are left out.

        Args:
            dim: how many directions are kept; 0: all.

        Raises:
            ValueError: fewer than two different vectors.
        """
        values = vectors.double()
        mean = values.mean(dim=0)
        variances, directions = torch.linalg.eigh((values - mean).T @ (values - mean) / max(len(values), 1))
        variances, directions = variances.flip(0), directions.flip(1)
        keep = int((variances > 1e-8 * variances[0].clamp_min(1e-12)).sum())
        if len(values) < 2 or not keep:
            raise ValueError(f"whitening cannot be learnt from {len(values)} descriptors that do not vary; give more")
        keep = min(keep, dim or keep)
        projection = directions[:, :keep] / variances[:keep].sqrt()
        return cls(mean.float(), projection.float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Unit vectors `[N, dim]`."""
        return unit((vectors - self.mean) @ self.projection, dim=1)


def describe(evaluation: Evaluation, images, description: str) -> tuple[np.ndarray, Tensor]:
    """Rows `[N]` of the readable images and their unit descriptors `[N, D]`, without whitening. Collective.

    Raises:
        ValueError: no image can be decoded.
    """
    config: DescriptorConfig = evaluation.config
    parts = config.descriptor.split("_")
    total: Tensor | None = None
    rows: np.ndarray = np.empty(0, dtype=int)
    for scale in config.scales:
        transform = _scaled(evaluation.transform, scale, evaluation.backbone.stride, config.whole)
        found = evaluation.features(
            images, parts=parts, transform=transform, description=description, gem_power=config.gem_power
        )
        vectors = unit(torch.cat([found.parts[part][:, -1] for part in parts], dim=1), dim=1)
        total, rows = vectors if total is None else total + vectors, found.index.cpu().numpy()
    if not len(rows):
        raise ValueError(f"no image of the {description.lower()} can be decoded")
    assert total is not None
    return rows, unit(total, dim=1)


def learn_whitening(evaluation: Evaluation) -> Whitening | None:
    """Whitening from the images that are named for it, if there are any. Collective."""
    config: DescriptorConfig = evaluation.config
    if not config.whitening.path:
        return None
    images = PlainImages(config.whitening, "whitening")
    return Whitening.learn(describe(evaluation, images, "Whitening images")[1], config.whitening_dim)


def derived(fingerprint: str | None, *changes) -> str | None:
    """The fingerprint of images that were changed in this way."""
    return fingerprint and hashlib.sha256(repr((fingerprint, changes)).encode()).hexdigest()


def as_array(pixels: np.ndarray) -> bytes:
    """Pixels `[C, h, w]` as a file that `open_image` reads, without a loss."""
    buffer = io.BytesIO()
    np.save(buffer, pixels.transpose(1, 2, 0))
    return buffer.getvalue()


def _scaled(transform: EvalTransform, scale: float, patch_size: int, whole: bool) -> WholeTransform | EvalTransform:
    scaled = transform.scaled(lambda side: max(round(side * scale / patch_size), 1) * patch_size)
    if whole:
        return WholeTransform(scaled.crop_size, transform.mean, transform.std, transform.decoding)
    return scaled
