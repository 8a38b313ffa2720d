"""How an image is brought to what a frozen backbone takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import ColorsConfig, RunConfig
from .crops import as_crop, resample
from .decode import DEFAULT_DECODING, Decoding, decoded, open_image
from .photometric import as_unit, normalize

Size = tuple[int, int]
"""Height and width in pixels."""
BICUBIC = int(Image.Resampling.BICUBIC)
_SMOOTH = (BICUBIC, int(Image.Resampling.BILINEAR))


@dataclass(frozen=True, repr=False)
class EvalTransform:
    """Resize, centre crop, normalisation: what evaluation and the exported preprocessor do."""

    resize_size: int | Size
    """Short side in pixels; or height and width, to which the whole image is squeezed; 0: as it is."""
    crop_size: int | Size
    """Side of the centre crop in pixels, or height and width; where the image is smaller it is padded with black."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of pixels in [0, 1], as `mean`."""
    decoding: Decoding = DEFAULT_DECODING
    """As the images that the backbone was trained on were decoded."""
    resample: int = BICUBIC
    """Filter of the resize: one of `PIL.Image.Resampling`."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # so that equal ones look the same
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.resize_size, int):
            object.__setattr__(self, "resize_size", tuple(self.resize_size))
        if not isinstance(self.crop_size, int):
            height, width = self.crop_size
            object.__setattr__(self, "crop_size", height if height == width else (height, width))

    def __repr__(self) -> str:
        """Without `resample` where it is bicubic: features on disk are found by this text since release 0.4."""
        shown = [item for item in fields(self) if item.name != "resample" or self.resample != BICUBIC]
        return f"EvalTransform({', '.join(f'{item.name}={getattr(self, item.name)!r}' for item in shown)})"

    @property
    def size(self) -> Size:
        """Height and width of the crops in pixels."""
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size

    def enlarged(self, side: int) -> EvalTransform:
        """The same at the smallest whole multiple of its size at which crops are at least `side` pixels."""
        factor = max(math.ceil(side / min(self.size)), 1)
        return self.scaled(lambda pixels: factor * pixels)

    def scaled(self, side: Callable[[int], int]) -> EvalTransform:
        """The same with crops of the sides that `side` makes of the present ones, and a resize in proportion."""
        (rows, columns), (height, width) = self.size, map(side, self.size)
        resize: int | Size
        if isinstance(self.resize_size, int):
            resize = round(self.resize_size * height / rows)
        else:
            resize = round(self.resize_size[0] * height / rows), round(self.resize_size[1] * width / columns)
        return replace(self, resize_size=resize, crop_size=(height, width))

    @classmethod
    def of_crop(
        cls, side: int, mean: Sequence[float], std: Sequence[float], decoding: Decoding = DEFAULT_DECODING
    ) -> EvalTransform:
        """Centre crops of `side` pixels, out of images resized as the released models are used: see `resize_for`."""
        return cls(resize_for(side), side, mean, std, decoding)

    def pixels(self, data: bytes) -> np.ndarray:
        """An encoded image as `[C, *size]`, of the type of training crops (`data.crops.as_crop`).

        Raises:
            BrokenImage: the bytes cannot be decoded.
        """
        image = open_image(data, len(self.mean), self.decoding)
        height, width, reduction = self._resized(image.height, image.width)
        with decoded(image, reduction, self.decoding) as (pixels, whole):
            box = (0, 0, image.width * whole, image.height * whole)
            pixels = self._resample(pixels, box, (height, width))
        rows, columns = self.size
        left, top = (width - columns) // 2, (height - rows) // 2
        sides = (-left, left + columns - width, -top, top + rows - height)
        return torch.nn.functional.pad(pixels, sides).numpy()  # negative sides cut

    def _resized(self, height: int, width: int) -> tuple[int, int, float]:
        """Height and width that an image is resized to, and by how much it may be reduced when it is decoded."""
        if not self.resize_size:
            return height, width, 1.0
        if isinstance(self.resize_size, int):
            scale = self.resize_size / min(width, height)
            # as the stock image processor rounds
            size = int(height * scale + 1e-6), int(width * scale + 1e-6)
        else:
            size = self.resize_size
            scale = max(size[0] / height, size[1] / width)
        # keep twice the pixels for a clean resize, which needs a filter that is smooth
        return *size, 1 / scale / 2 if self.resample in _SMOOTH else 1.0

    def _resample(self, pixels: Tensor, box: tuple[float, float, float, float], size: Size) -> Tensor:
        height, width = size
        if len(pixels) == 3 and pixels.dtype == torch.uint8:  # to the last bit as the stock image processor does it
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            picture = picture.resize((width, height), self.resample, box=box)
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        if self.resample == BICUBIC:
            return as_crop(resample(pixels, box, size))
        planes = [Image.fromarray(plane.numpy()).resize((width, height), self.resample, box=box) for plane in pixels]
        return as_crop(torch.from_numpy(np.stack([np.array(plane) for plane in planes])))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Crops `[B, C, H, W]` to what the model takes."""
        return normalize(as_unit(pixels), self.mean, self.std)


def preprocessor_config(transform: EvalTransform) -> dict:
    """The transform as the configuration of a stock image processor: that of DINOv2, or of ViT where it squeezes.

    `bits` is ours, where it is not 16: the stock processor ignores it.
    """
    bits = {} if transform.decoding.bits == DEFAULT_DECODING.bits else {"bits": transform.decoding.bits}
    resize, (height, width) = transform.resize_size, transform.size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(transform.mean) == 3,
        "do_resize": bool(resize),
        "size": {"shortest_edge": resize or 224} if isinstance(resize, int) else dict(zip(("height", "width"), resize)),
        "resample": transform.resample,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        **bits,
    }


def resize_for(crop_size: int) -> int:
    """Short side in pixels that images are resized to before the centre crop: 256 for one of 224, as published.

    Crops below 96 pixels take the whole short side: a model of so few patches is trained on nearly whole images, and
    the margin would cut what it has learnt to see.
    """
    return crop_size * 256 // 224 if crop_size >= 96 else crop_size


def default_colors(num_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation where nothing says them: ImageNet's for three channels, 0 and 1 for others."""
    if num_channels == 3:
        return ColorsConfig().mean, ColorsConfig().std
    return [0.0] * num_channels, [1.0] * num_channels


def evaluation_transform(config: RunConfig) -> EvalTransform:
    """What the model of a run is evaluated and exported with: crops of the size of its global crops."""
    decoding = replace(Decoding.of(config.data), truncated_jpegs=False)  # every image that is measured is whole
    return EvalTransform.of_crop(config.crops.global_size, config.colors.mean, config.colors.std, decoding)
