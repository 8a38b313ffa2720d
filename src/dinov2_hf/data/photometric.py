"""Colour augmentation on the device: every crop with parameters of its own, drawn in the data workers.

The operations and their order are those of the published `DataAugmentationDINO`: colour jitter in random order,
grayscale, Gaussian blur (kernel 9), solarisation, normalisation.

Axes: `V` crops, `C` channels, `H` x `W` pixels, `P` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ColorsConfig
from .batch import SSLBatch

_BLUR_RADIUS = 4
_TINY = 1e-12
_NO_TAP = 1e-6

Factor = Tensor | float
"""How much: `[V, 1, 1, 1]`, or the same for all images."""


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


def draw_view_parameters(rng: np.random.Generator, config: ColorsConfig, num_local: int) -> np.ndarray:
    """Colour parameters `[2 + num_local, P]` of all crops of an image, global views first."""
    views = 2 + num_local
    table = np.zeros((views, len(Parameter)), dtype=np.float32)
    random = rng.random((views, 13))
    table[:, :4] = np.where(random[:, 4:5] < config.jitter_probability, random[:, :4].argsort(axis=1), -1)
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    table[:, Parameter.BRIGHTNESS : Parameter.HUE + 1] = strengths * (2 * random[:, 5:9] - 1) + [1, 1, 1, 0]
    table[:, Parameter.GRAYSCALE] = random[:, 9] < config.grayscale_probability
    low, high = config.blur_sigma
    first, second, local = config.blur_probability
    blurred = random[:, 11] < np.array([first, second] + [local] * num_local)
    table[:, Parameter.BLUR_SIGMA] = np.where(blurred, low + (high - low) * random[:, 10], 0)
    table[1, Parameter.SOLARIZE] = random[1, 12] < config.solarize_probability
    return table


class PhotometricAugmentation:
    """Colours and normalises the crops of a batch on the device they are on."""

    def __init__(self, config: ColorsConfig) -> None:
        self.config = config

    def __call__(self, batch: SSLBatch) -> SSLBatch:
        """The batch with normalised float32 crops."""
        assert batch.global_colors is not None and batch.local_colors is not None
        mean, std = self.config.mean, self.config.std
        return replace(
            batch,
            global_crops=apply_parameters(batch.global_crops, batch.global_colors, mean, std),
            local_crops=apply_parameters(batch.local_crops, batch.local_colors, mean, std),
            global_colors=None,
            local_colors=None,
        )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(images - mean) / std` per channel, for `[V, C, H, W]` with values in [0, 1]."""
    factor, offset = _scale(mean, std, images.device)
    return (images * factor).add_(offset)


def _scale(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """The normalisation as a factor and an offset, `[1, C, 1, 1]` each."""
    factor = _constant(tuple(1 / value for value in std), device)
    offset = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), device)
    return factor.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)


def as_unit(crops: Tensor) -> Tensor:
    """Crops as they travel, uint8 or float32, as new float32 in [0, 1]."""
    return crops.float().div_(255) if crops.dtype == torch.uint8 else crops.clone()


def apply_parameters(crops: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Colours crops `[V, C, H, W]`, uint8 or in [0, 1], by `parameters` `[V, P]`, and normalises them.

    `parameters` stays on the host: it decides which operation runs on which crops, so nothing waits for the device.
    What changes colours (saturation, hue, grayscale) is left out where there are not 3 channels.
    """
    if crops.device.type != "cpu":
        return normalize(_color_batch(as_unit(crops), parameters), mean, std)
    result = torch.empty(crops.shape)
    factor, offset = _scale(mean, std, crops.device)
    with torch.inference_mode():
        # one crop fits in the cache, through all of its operations
        for crop, row, target in zip(crops.split(1), parameters.tolist(), result.split(1)):
            torch.mul(_color_one(as_unit(crop), row), factor, out=target).add_(offset)
    return result


def _color_one(image: Tensor, row: list[float]) -> Tensor:
    """One crop `[1, C, H, W]` by its `row` of parameters."""
    colored = image.shape[1] == 3
    for slot in row[:4]:
        code = int(slot)
        if code >= 0 and (colored or code not in _COLORS_ONLY):
            image = _JITTER[code](image, row[Parameter.BRIGHTNESS + code])
    if row[Parameter.GRAYSCALE] and colored:
        image = to_grayscale(image)
    if row[Parameter.BLUR_SIGMA]:
        image = gaussian_blur(image, row[Parameter.BLUR_SIGMA])
    return solarize(image) if row[Parameter.SOLARIZE] else image


def _color_batch(images: Tensor, parameters: Tensor) -> Tensor:
    """All crops, operation by operation, each on the crops that it is for."""
    colored = images.shape[1] == 3
    for slot in range(4):
        for code, adjust in enumerate(_JITTER):
            if colored or code not in _COLORS_ONLY:
                _apply_to(images, parameters[:, slot] == code, adjust, parameters[:, Parameter.BRIGHTNESS + code])
    if colored:
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
    return _mix_channels(_luma(images.device).expand(3, 3), images)


def adjust_brightness(images: Tensor, factor: Factor) -> Tensor:
    """`factor * images`, clamped to [0, 1]."""
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Factor) -> Tensor:
    """Blend with the mean luma of each image, or with its mean where there are not 3 channels."""
    means = images.mean(dim=(2, 3))
    mean = means @ _luma(images.device) if images.shape[1] == 3 else means.mean(dim=1)
    return (images * factor).add_((1 - factor) * mean.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Factor) -> Tensor:
    """Blend with the grayscale image."""
    identity = _constant((1, 0, 0, 0, 1, 0, 0, 0, 1), images.device).view(3, 3)
    matrix = torch.lerp(_luma(images.device).expand(3, 3), identity, _per_matrix(factor))
    return _mix_channels(matrix, images).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Factor) -> Tensor:
    """Turns the hue by `shift` of the colour circle, at constant HSV saturation and value.

    On the colour hexagon, six sides around, the distance from red is `1 + (green + blue - red - min) / chroma`; which
    way round is the sign of green - blue. A channel is the minimum plus chroma times a trapezium of the hue.
    """
    red, green, blue = images.unbind(1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    distance = (green + blue).sub_(lowest).sub_(red).div_(chroma.clamp_min(_TINY)).add_(1)
    hue = torch.copysign(distance, green - blue).mul_(1 / 6).add_(_per_matrix(shift))
    hue.sub_(hue.floor()).mul_(6)  # in [0, 6)
    turned = torch.empty_like(images)
    for channel, (centre, sign) in enumerate(((3, 1), (2, -1), (4, -1))):
        # red is the minimum up to a distance of 1 from cyan, the others the maximum up to 1 from themselves
        base = lowest - chroma if sign > 0 else torch.add(lowest, chroma, alpha=2)
        torch.addcmul(base, (hue - centre).abs_().clamp_(1, 2), chroma, value=sign, out=turned[:, channel])
    return turned


def gaussian_blur(images: Tensor, sigma: Factor) -> Tensor:
    """Separable Gaussian of 9 x 9 taps with reflected borders; `sigma` in pixels."""
    taps = _gaussian_taps(sigma)
    height, width = images.shape[2:]
    if min(height, width) > _BLUR_RADIUS:
        images = nn.functional.pad(images, [_BLUR_RADIUS] * 4, mode="reflect")
    else:  # reflected more than once
        for dim, size in ((2, height), (3, width)):
            images = images.index_select(dim, _reflected(size, images.device))
    for dim, size in ((2, height), (3, width)):
        padded = images
        images = padded.narrow(dim, _BLUR_RADIUS, size) * taps[0]
        for distance in range(1, len(taps)):
            for start in (_BLUR_RADIUS - distance, _BLUR_RADIUS + distance):
                _add_scaled_(images, padded.narrow(dim, start, size), taps[distance])
    return images


def solarize(images: Tensor) -> Tensor:
    """Inverts values of 128 and more on the scale of 255: those above a half, which become the smaller of the two."""
    return torch.minimum(images, 1 - images)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
_COLORS_ONLY = (2, 3)


def _per_matrix(factor: Factor) -> Factor:
    """`[V, 1, 1, 1]` as `[V, 1, 1]`."""
    return factor.flatten(1, 2) if isinstance(factor, Tensor) else factor


def _gaussian_taps(sigma: Factor) -> Sequence[Factor]:
    """The taps at distances 0 to 4, or up to the last that counts; with those on the other side they add up to 1."""
    exponents = [-0.5 * distance**2 for distance in range(_BLUR_RADIUS + 1)]
    if isinstance(sigma, Tensor):
        taps: list[Any] = [torch.exp(exponent / sigma.square()) for exponent in exponents]
    else:
        taps = [math.exp(exponent / sigma**2) for exponent in exponents]
        taps = [tap for tap in taps if tap > _NO_TAP]
    total = 2 * sum(taps) - taps[0]
    return [tap / total for tap in taps]


def _add_scaled_(images: Tensor, others: Tensor, factor: Factor) -> None:
    if isinstance(factor, Tensor):
        images.addcmul_(others, factor)
    else:
        images.add_(others, alpha=factor)


def _mix_channels(matrix: Tensor, images: Tensor) -> Tensor:
    """`[3, 3]` or `[V, 3, 3]` times the channels of `[V, 3, H, W]`."""
    return torch.bmm(matrix.expand(len(images), 3, 3), images.flatten(2)).view_as(images)


def _luma(device: torch.device) -> Tensor:
    return _constant((0.299, 0.587, 0.114), device)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values on the device, without waiting for it at every step."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _reflected(size: int, device: torch.device) -> Tensor:
    """Positions in a signal that is continued by the radius of the blur on both sides, reflected as often as needed."""
    if size == 1:
        return torch.zeros(1 + 2 * _BLUR_RADIUS, dtype=torch.long, device=device)
    period = 2 * (size - 1)
    positions = torch.arange(-_BLUR_RADIUS, size + _BLUR_RADIUS) % period
    return torch.minimum(positions, period - positions).to(device)
