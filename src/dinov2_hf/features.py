"""Frozen features of labelled images, extracted by all processes together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .data.decode import BrokenImage, decode_rgb, decoded_scale, open_image, oriented_size
from .data.photometric import normalize
from .data.sources import LabeledImages

logger = logging.getLogger(__name__)

FeatureFunction = Callable[[Tensor], Tensor]
"""Normalised images `[B, 3, H, W]` to features `[B, D]`."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize of the short side, centre crop, normalisation: what evaluation and the exported preprocessor do."""

    resize_size: int
    """Short side in pixels."""
    crop_size: int
    """Side of the centre crop in pixels; where the image is smaller it is padded with black."""
    mean: Sequence[float]
    std: Sequence[float]

    def pixels(self, data: bytes) -> np.ndarray:
        """An encoded image as uint8 `[3, crop_size, crop_size]`.

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        image = open_image(data)
        width, height = oriented_size(image)
        scale = self.resize_size / min(width, height)
        image = decode_rgb(image, reduction=1 / scale / 2)  # keep twice the pixels for a clean resize
        size = (int(width * scale + 1e-6), int(height * scale + 1e-6))  # as the stock image processor rounds
        whole = decoded_scale(image, width, height)
        image = image.resize(size, Image.Resampling.BICUBIC, box=(0, 0, width * whole, height * whole))
        left, top = (image.width - self.crop_size) // 2, (image.height - self.crop_size) // 2
        image = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        return np.asarray(image).transpose(2, 0, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` to what the model takes."""
        return normalize(pixels.float() / 255, list(self.mean), list(self.std))


class _Share(Dataset):
    """The images of one process, all processes the same number; `valid` is False for padding and broken images."""

    def __init__(self, images: LabeledImages, transform: EvalTransform, rank: int, world_size: int) -> None:
        self._images, self._transform = images, transform
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._world_size)

    def __getitem__(self, item: int) -> tuple[Tensor, int, bool]:
        index = item * self._world_size + self._rank
        size = self._transform.crop_size
        if index < len(self._images):
            data, name = self._images.read(index)
            try:
                return torch.from_numpy(self._transform.pixels(data).copy()), index, True
            except BrokenImage as error:
                logger.warning("left out an image that cannot be decoded: %s: %s", name, error)
        return torch.zeros(3, size, size, dtype=torch.uint8), -1, False


@torch.no_grad()
def extract_features(
    features: FeatureFunction,
    images: LabeledImages,
    transform: EvalTransform,
    accelerator: Accelerator,
    batch_size: int = 64,
    num_workers: int = 0,
    description: str = "Features",
) -> tuple[Tensor, Tensor]:
    """Features `[N, D]`, float32, and labels `[N]` of the readable images, in order, on every process.

    Collective: call on all ranks.
    """
    share = _Share(images, transform, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(share, batch_size=batch_size, num_workers=num_workers)
    parts, indices = [], []
    for pixels, index, valid in tqdm(loader, desc=description, leave=False, disable=not accelerator.is_main_process):
        with accelerator.autocast():
            values = features(transform.normalize(pixels.to(accelerator.device)))
        parts.append(values.float())
        indices.append(torch.where(valid, index, -1))
    index = accelerator.gather(torch.cat(indices).to(accelerator.device))
    values = accelerator.gather(torch.cat(parts))
    order = torch.argsort(index)
    order = order[index[order] >= 0]
    labels = torch.as_tensor(images.labels, device=values.device)[index[order]]
    return values[order], labels
