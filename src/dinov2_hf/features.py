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

from .config import PretrainConfig
from .data.crops import as_crop, resample
from .data.decode import BrokenImage, open_image
from .data.labeled import LabeledImages
from .data.photometric import as_unit, normalize

logger = logging.getLogger(__name__)

FeatureFunction = Callable[[Tensor], Tensor]
"""Normalised images `[B, C, H, W]` to features `[B, D]`."""


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
        """An encoded image as `[C, crop_size, crop_size]`, of the type of training crops (`data.crops.as_crop`).

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        image = open_image(data, len(self.mean))
        scale = self.resize_size / min(image.width, image.height)
        pixels, whole = image.decode(reduction=1 / scale / 2)  # keep twice the pixels for a clean resize
        # as the stock image processor rounds
        height, width = int(image.height * scale + 1e-6), int(image.width * scale + 1e-6)
        box = (0, 0, image.width * whole, image.height * whole)
        if len(pixels) == 3 and pixels.dtype == torch.uint8:  # to the last bit as the stock image processor does it
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        else:
            pixels = as_crop(resample(pixels, box, (height, width)))
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        sides = (-left, left + self.crop_size - width, -top, top + self.crop_size - height)
        return torch.nn.functional.pad(pixels, sides).numpy()  # negative sides cut

    def normalize(self, pixels: Tensor) -> Tensor:
        """Crops `[B, C, H, W]` to what the model takes."""
        return normalize(as_unit(pixels), self.mean, self.std)


def evaluation_transform(config: PretrainConfig) -> EvalTransform:
    """What a run evaluates with, or would: crops of the size that it trains on."""
    size, colors = config.crops.global_size, config.colors
    resize, crop = (config.knn.resize_size, config.knn.crop_size) if config.knn.enabled else (size * 256 // 224, size)
    return EvalTransform(resize, crop, colors.mean, colors.std)


class _Share(Dataset):
    """The images of one process, all processes the same number; `valid` is False for padding and broken images."""

    def __init__(self, images: LabeledImages, transform: EvalTransform, rank: int, world_size: int) -> None:
        self._images, self._transform = images, transform
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._world_size)

    def __getitem__(self, item: int) -> tuple[Tensor, int, bool]:
        index = item * self._world_size + self._rank
        if index < len(self._images):
            data, name = self._images.read(index)
            try:
                return torch.from_numpy(self._transform.pixels(data)), index, True
            except BrokenImage as error:
                logger.warning("left out an image that cannot be decoded: %s: %s", name, error)
        size, channels = self._transform.crop_size, len(self._transform.mean)
        return as_crop(torch.zeros(channels, size, size, dtype=torch.uint8)), -1, False


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
