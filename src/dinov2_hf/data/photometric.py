"""Colour augmentation on the device: every crop with parameters of its own, drawn in the data workers.

The operations and their order are those of the published `DataAugmentationDINO`: colour jitter in random order,
grayscale, Gaussian blur (kernel 9), solarisation, normalisation.

Axes: `V` crops, `C = 3` channels, `H` x `W` pixels, `P` parameters.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ColorsConfig
from ..ssl.batch import SSLBatch

_LUMA = (0.299, 0.587, 0.114)
_BLUR_RADIUS = 4


class Parameter(IntEnum):
    """Columns of a colour parameter table `[V, P]`."""

    FIRST = 0
    SECOND = 1
    THIRD = 2
    FOURTH = 3
    """The first to fourth jitter operation: 0 brightness, 1 contrast, 2 saturation, 3 hue; -1 for none."""
    BRIGHTNESS = 4
    CONTRAST = 5
    SATURATION = 6
    HUE = 7
    GRAYSCALE = 8
    """1 or 0."""
    BLUR_SIGMA = 9
    """Pixels; 0 for no blur."""
    SOLARIZE = 10
    """1 or 0."""


def draw_parameters(
    rng: np.random.Generator, config: ColorsConfig, blur_probability: float, solarize_probability: float
) -> np.ndarray:
    """Colour parameters `[P]` of one crop."""
    row = np.zeros(len(Parameter), dtype=np.float32)
    order, jitter = rng.permutation(4), rng.random() < config.jitter_probability
    row[:4] = order if jitter else -1
    for column, strength in (
        (Parameter.BRIGHTNESS, config.brightness),
        (Parameter.CONTRAST, config.contrast),
        (Parameter.SATURATION, config.saturation),
    ):
        row[column] = rng.uniform(1 - strength, 1 + strength)
    row[Parameter.HUE] = rng.uniform(-config.hue, config.hue)
    row[Parameter.GRAYSCALE] = rng.random() < config.grayscale_probability
    sigma, blur = rng.uniform(*config.blur_sigma), rng.random() < blur_probability
    row[Parameter.BLUR_SIGMA] = sigma if blur else 0
    row[Parameter.SOLARIZE] = rng.random() < solarize_probability
    return row


def draw_view_parameters(rng: np.random.Generator, config: ColorsConfig, num_local: int) -> np.ndarray:
    """Colour parameters `[2 + num_local, P]` of all crops of an image, global views first."""
    first, second, local = config.blur_probability
    rows = [draw_parameters(rng, config, first, 0.0), draw_parameters(rng, config, second, config.solarize_probability)]
    rows += [draw_parameters(rng, config, local, 0.0) for _ in range(num_local)]
    return np.stack(rows)


class PhotometricAugmentation:
    """Colours and normalises the crops of a batch on the device they are on."""

    def __init__(self, config: ColorsConfig) -> None:
        self.config = config

    def __call__(self, batch: SSLBatch) -> SSLBatch:
        """The batch with normalised float32 crops."""
        assert batch.global_colors is not None and batch.local_colors is not None
        return replace(
            batch,
            global_crops=self.normalize(apply_parameters(batch.global_crops, batch.global_colors)),
            local_crops=self.normalize(apply_parameters(batch.local_crops, batch.local_colors)),
            global_colors=None,
            local_colors=None,
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Subtracts the mean and divides by the standard deviation of each channel."""
        return normalize(images, self.config.mean, self.config.std)


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """`(images - mean) / std` per channel, for `[V, C, H, W]` with values in [0, 1]."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (images - mean) / std


def apply_parameters(crops: Tensor, parameters: Tensor) -> Tensor:
    """Colours uint8 crops `[V, C, H, W]` by `parameters` `[V, P]`, as float32 in [0, 1].

    `parameters` stays on the host: it decides which operation runs on which crops, so nothing waits for the device.
    """
    images = crops.float().div_(255)
    jitter = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for slot in range(4):
        for code, adjust in enumerate(jitter):
            _apply_to(images, parameters[:, slot] == code, adjust, parameters[:, Parameter.BRIGHTNESS + code])
    _apply_to(images, parameters[:, Parameter.GRAYSCALE] > 0, to_grayscale)
    sigma = parameters[:, Parameter.BLUR_SIGMA]
    _apply_to(images, sigma > 0, gaussian_blur, sigma)
    _apply_to(images, parameters[:, Parameter.SOLARIZE] > 0, solarize)
    return images


def _apply_to(images: Tensor, chosen: Tensor, function, factor: Tensor | None = None) -> None:
    """Replaces `images[chosen]` by `function` of them and of `factor[chosen]`; indices and factors are on the host."""
    index = chosen.nonzero().flatten()
    if not len(index):
        return
    arguments = []
    if factor is not None:
        arguments.append(factor[index].to(images.device, non_blocking=True).view(-1, 1, 1, 1))
    index = index.to(images.device, non_blocking=True)
    images.index_copy_(0, index, function(images.index_select(0, index), *arguments))


def to_grayscale(images: Tensor) -> Tensor:
    """Luma of `[V, 3, H, W]`, in all three channels."""
    return _luma(images).expand_as(images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """`factor * images`, clamped to [0, 1]; `factor` `[V, 1, 1, 1]` as in all of these."""
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image."""
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grayscale image."""
    return torch.lerp(_luma(images).expand_as(images), images, factor).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` of the colour circle, at constant HSV saturation and value."""
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # the channel at offset n of the colour hexagon is value - chroma * clamp(min(k, 4 - k), 0, 1), k = n + hue (mod 6)
    offsets = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    position = sextant + 6 * shift + offsets
    position = position - 6 * torch.floor(position / 6)  # remainder() is many times slower on CPUs
    return value - chroma * torch.minimum(position, 4 - position).clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian of 9 x 9 taps with reflected borders; `sigma` `[V, 1, 1, 1]` in pixels."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device, dtype=images.dtype)
    kernels = torch.softmax(-0.5 * (offsets / sigma.flatten(1)).square(), dim=1)  # [V, 9], each row sums to 1
    kernels = kernels.repeat_interleave(images.shape[1], dim=0)
    channels = images.flatten(0, 1).unsqueeze(0)  # every channel of every crop is a group of one convolution
    channels = nn.functional.pad(channels, [_BLUR_RADIUS] * 4, mode="reflect")
    channels = nn.functional.conv2d(channels, kernels.view(-1, 1, 1, kernels.shape[1]), groups=len(kernels))
    channels = nn.functional.conv2d(channels, kernels.view(-1, 1, kernels.shape[1], 1), groups=len(kernels))
    return channels.view_as(images)


def solarize(images: Tensor) -> Tensor:
    """Inverts values of 128 and more on the scale of 255."""
    return torch.where(images >= 127.5 / 255, 1 - images, images)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
