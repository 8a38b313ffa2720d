"""Multi-crop geometry (SwAV; DINO paper, section 3.1): where the crops of an image lie, and their pixels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..config import CropsConfig
from .decode import DEFAULT_DECODING, Decoding, EncodedImage, decoded, open_image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the upright image."""

_ASPECT_RATIO = (3 / 4, 4 / 3)


def draw_box(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """A random box with an area share from `scale` and an aspect ratio from 3/4 to 4/3 (log-uniform).

    After ten boxes that do not fit, the largest centred box of an allowed aspect ratio; the rule of torchvision's
    `RandomResizedCrop`.
    """
    low, high = (math.log(ratio) for ratio in _ASPECT_RATIO)
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * _ASPECT_RATIO[1])))
    box_height = min(height, max(1, round(width / _ASPECT_RATIO[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def resample(pixels: Tensor, box: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """The part of `pixels` `[C, h, w]` in `box`, to the nearest pixel, as `[C, *size]`: bicubic with antialiasing.

    With eight bits and channels last this is an integer kernel, several times faster than Pillow's and equal to it up
    to rounding.
    """
    height, width = pixels.shape[1:]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    part = pixels[:, top:bottom, left:right].unsqueeze(0)
    return nn.functional.interpolate(part, size, mode="bicubic", antialias=True)[0]


def as_crop(pixels: Tensor) -> Tensor:
    """Resampled pixels in the type that batches hold: uint8 for 3 channels, else float32 in [0, 1]."""
    deep = pixels.dtype != torch.uint8
    if pixels.shape[0] == 3:
        return pixels.mul(255).round_().clamp_(0, 255).to(torch.uint8) if deep else pixels
    return pixels.clamp(0, 1) if deep else pixels.float().div_(255)


class MultiCrop:
    """Cuts the two global and the local crops of an image, flips included."""

    def __init__(self, config: CropsConfig, num_channels: int = 3, decoding: Decoding = DEFAULT_DECODING) -> None:
        self.config = config
        self.num_channels = num_channels
        self.decoding = decoding

    def __call__(self, data: bytes, rng: np.random.Generator) -> list[np.ndarray]:
        """The crops of an encoded image, see `cut`.

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        return self.cut(self.open(data), rng)

    def open(self, data: bytes) -> EncodedImage:
        """An encoded image, not decoded.

        Raises:
            BrokenImage: not an image.
        """
        return open_image(data, self.num_channels, self.decoding)

    def cut(self, image: EncodedImage, rng: np.random.Generator) -> list[np.ndarray]:
        """The crops of an image, each `[C, size, size]`: two global ones, then the local ones.

        The image is decoded once, at the smallest scale at which no crop has to be enlarged, and every crop is
        resampled straight from it. For the type see `as_crop`.

        Raises:
            BrokenImage: the pixels cannot be decoded.
        """
        config = self.config
        plan = [(config.global_size, config.global_scale)] * 2
        plan += [(config.local_size, config.local_scale)] * config.num_local
        boxes = [draw_box(rng, image.width, image.height, (scale[0], scale[1])) for _, scale in plan]
        flips = rng.random(len(plan)) < config.flip_probability

        reduction = min(
            min(right - left, bottom - top) / size for (left, top, right, bottom), (size, _) in zip(boxes, plan)
        )
        crops = []
        with decoded(image, reduction, self.decoding) as (pixels, scale):
            for (left, top, right, bottom), (size, _), flip in zip(boxes, plan, flips):
                box = left * scale, top * scale, right * scale, bottom * scale
                crop = as_crop(resample(pixels, box, (size, size))).numpy()
                crops.append(crop[:, :, ::-1] if flip else crop)
        return crops
