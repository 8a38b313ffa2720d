"""How an image is brought to what a frozen backbone takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import ColorsConfig, RunConfig
from .crops import as_crop, resample
from .decode import DEFAULT_DECODING, Decoding, decoded, open_image
from .photometric import as_unit, normalize


@dataclass(frozen=True)
class EvalTransform:
    """Resize of the short side, centre crop, normalisation: what evaluation and the exported preprocessor do."""

    resize_size: int
    """Short side in pixels."""
    crop_size: int
    """Side of the centre crop in pixels; where the image is smaller it is padded with black."""
    mean: Sequence[float]
    std: Sequence[float]
    decoding: Decoding = DEFAULT_DECODING
    """As the images that the backbone was trained on were decoded."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # so that equal ones look the same
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def enlarged(self, side: int) -> EvalTransform:
        """The same at the smallest whole multiple of its size at which crops are at least `side` pixels."""
        factor = max(math.ceil(side / self.crop_size), 1)
        return replace(self, resize_size=factor * self.resize_size, crop_size=factor * self.crop_size)

    @classmethod
    def of_crop(
        cls, side: int, mean: Sequence[float], std: Sequence[float], decoding: Decoding = DEFAULT_DECODING
    ) -> EvalTransform:
        """Centre crops of `side` pixels, out of images resized as the released models are used: see `resize_for`."""
        return cls(resize_for(side), side, mean, std, decoding)

    @classmethod
    def of_preprocessor(cls, settings: Mapping[str, Any]) -> EvalTransform:
        """What the configuration of a stock image processor says; images are cropped square, never squeezed.

        Raises:
            ValueError: no size, mean or deviation in it.
        """
        try:
            size, crop = settings["size"], settings.get("crop_size") if settings.get("do_center_crop", True) else None
            sides = [_side(value) for value in (size, crop) if value is not None]
            decoding = Decoding(bits=settings.get("bits", DEFAULT_DECODING.bits))
            return cls(sides[0], sides[-1], settings["image_mean"], settings["image_std"], decoding)
        except (KeyError, TypeError, StopIteration) as error:
            raise ValueError(f"the preprocessor does not tell how it prepares images: {error!r}") from None

    def pixels(self, data: bytes) -> np.ndarray:
        """An encoded image as `[C, crop_size, crop_size]`, of the type of training crops (`data.crops.as_crop`).

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        image = open_image(data, len(self.mean), self.decoding)
        scale = self.resize_size / min(image.width, image.height)
        # as the stock image processor rounds
        height, width = int(image.height * scale + 1e-6), int(image.width * scale + 1e-6)
        # keep twice the pixels for a clean resize
        with decoded(image, 1 / scale / 2, self.decoding) as (pixels, whole):
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


def preprocessor_config(transform: EvalTransform) -> dict:
    """The transform as the configuration of the stock image processor of DINOv2.

    `bits` is ours, where it is not 16: the stock processor ignores it.
    """
    bits = {} if transform.decoding.bits == DEFAULT_DECODING.bits else {"bits": transform.decoding.bits}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(transform.mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": transform.resize_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": transform.crop_size, "width": transform.crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        **bits,
    }


def _side(size: int | Mapping[str, int]) -> int:
    """The short side of a size as image processors have it: a number, `shortest_edge`, or `height` and `width`."""
    if isinstance(size, int):
        return size
    return next(size[name] for name in ("shortest_edge", "height", "longest_edge") if size.get(name))


def resize_for(crop_size: int) -> int:
    """Short side in pixels that images are resized to before the centre crop, 256 for one of 224."""
    return crop_size * 256 // 224


def default_colors(num_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation where nothing says them: ImageNet's for three channels, 0 and 1 for others."""
    if num_channels == 3:
        return ColorsConfig().mean, ColorsConfig().std
    return [0.0] * num_channels, [1.0] * num_channels


def evaluation_transform(config: RunConfig) -> EvalTransform:
    """What the model of a run is evaluated and exported with: crops of the size of its global crops."""
    decoding = replace(Decoding.of(config.data), truncated_jpegs=False)  # every image that is measured is whole
    return EvalTransform.of_crop(config.crops.global_size, config.colors.mean, config.colors.std, decoding)
