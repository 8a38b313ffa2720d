"""Multi-crop geometry (SwAV; DINO paper, section 3.1): where the crops of an image lie, and their pixels."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ..config import CropsConfig
from .decode import decode_rgb, decoded_scale, open_image, oriented_size

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


class MultiCrop:
    """Cuts the two global and the local crops of an image, flips included, as uint8."""

    def __init__(self, config: CropsConfig) -> None:
        self.config = config

    def __call__(self, data: bytes, rng: np.random.Generator) -> list[np.ndarray]:
        """The crops of an encoded image, each `[3, size, size]`: two global ones, then the local ones.

        The image is decoded once, at the smallest scale at which no crop has to be enlarged, and every crop is
        resampled (bicubic) straight from it.

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        config = self.config
        image = open_image(data)
        width, height = oriented_size(image)
        plan = [(config.global_size, config.global_scale)] * 2
        plan += [(config.local_size, config.local_scale)] * config.num_local
        boxes = [draw_box(rng, width, height, tuple(scale)) for _, scale in plan]
        flips = rng.random(len(plan)) < config.flip_probability

        reduction = min(
            min(right - left, bottom - top) / size for (left, top, right, bottom), (size, _) in zip(boxes, plan)
        )
        image = decode_rgb(image, reduction)
        scale = decoded_scale(image, width, height)
        crops = []
        for (left, top, right, bottom), (size, _), flip in zip(boxes, plan, flips):
            crop = image.resize(
                (size, size),
                Image.Resampling.BICUBIC,
                box=(left * scale, top * scale, right * scale, bottom * scale),
                reducing_gap=2.0,
            )
            pixels = np.asarray(crop).transpose(2, 0, 1)
            crops.append(pixels[:, :, ::-1] if flip else pixels)
        return crops
