"""The configuration of an image processor of transformers as a transform."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from ..data import EvalTransform
from ..data.decode import DEFAULT_DECODING, Decoding
from ..data.transform import BICUBIC, Size

Settings = Mapping[str, Any]

_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels")
"""What `EvalTransform` does, and what does not change images."""
_FURTHER = ("do_pad", "do_flip_channel_order", "rescale_offset", "include_top", "crop_pct", "max_num_patches")
"""Fields of single processors that change images otherwise, where they are set."""
_OF_THEIR_OWN = ("PerceiverImageProcessor", "LevitImageProcessor")
"""Processors whose fields mean something else."""
_CONVNEXT, _SQUEEZED_FROM = "ConvNextImageProcessor", 384


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a `preprocessor_config.json`.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; fetch or export the model again") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a JSON object; fetch or export the model again")
    return settings


def transform_of(settings: Settings, num_channels: int, side: int, where: str) -> EvalTransform:
    """Returns the transform that gives the pixels of a processor of these settings.

    What keeps the size or the aspect ratio of images is cut to one size, so that images can be batched: without a
    centre crop to the square of the short side; with neither resize nor crop to `side`.

    Args:
        settings: of `preprocessor_config.json`; what is missing is as in the class that they name.
        num_channels: of the images of the model.
        side: of the images of the model in pixels.
        where: what messages call the model.

    Raises:
        ValueError: settings that `EvalTransform` cannot follow, or without a size or colours.
    """
    settings = _complete(settings)
    kind = settings.get("image_processor_type")
    for name, value in settings.items():
        known = name in _STEPS or (name == "crop_pct" and kind == _CONVNEXT)
        if value and not known and (name.startswith("do_") or name in _FURTHER):
            raise _refused(where, f"{name}={value}", "evaluation does not follow it; remove it there")
    if kind in _OF_THEIR_OWN:
        raise _refused(where, f"image_processor_type={kind}", "evaluation does not follow it; use that of ViT there")
    mean, std = colors_of(settings, num_channels, where)
    resize, crop = _sizes(settings, side, where)
    resample = settings.get("resample")
    decoding = Decoding(bits=settings.get("bits", DEFAULT_DECODING.bits))
    return EvalTransform(resize, crop, mean, std, decoding, BICUBIC if resample is None else int(resample))


def colors_of(settings: Settings, num_channels: int, where: str) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of pixels in [0, 1] that rescale and normalise as the settings say.

    Raises:
        ValueError: no mean or deviation, or others than the model has channels.
    """
    one = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = [0.0] * num_channels, [1.0] * num_channels
    if settings.get("do_normalize", True):
        mean, std = (_of_channels(settings, name, num_channels, where) for name in ("image_mean", "image_std"))
    return (mean, std) if one == 1 else ([value / one for value in mean], [value / one for value in std])


def has_colors(settings: Settings) -> bool:
    """Whether the settings say how images are normalised."""
    return settings.get("do_normalize") is False or bool(settings.get("image_mean") and settings.get("image_std"))


def _of_channels(settings: Settings, name: str, num_channels: int, where: str) -> list[float]:
    value = settings.get(name)
    values = [value] * num_channels if isinstance(value, (int, float)) else value
    if not isinstance(values, Sequence) or not values:
        raise _refused(where, f"{name}={value}", f"give {num_channels} values, or do_normalize=false")
    return list(values)


def _sizes(settings: Settings, side: int, where: str) -> tuple[int | Size, int | Size]:
    """Resize and crop, as `EvalTransform` has them."""
    resize: int | Size = 0
    if settings.get("do_resize", True):
        resize = _size(settings, "size", where)
        if settings.get("image_processor_type") == _CONVNEXT:
            if not isinstance(resize, int):
                raise _refused(where, f"size={settings['size']}", "ConvNeXt takes shortest_edge")
            if resize >= _SQUEEZED_FROM:
                return (resize, resize), resize
            return int(resize / settings.get("crop_pct", 224 / 256)), resize
    if settings.get("crop_size") and settings.get("do_center_crop", True):
        return resize, _size(settings, "crop_size", where)
    return resize, resize or side


def _size(settings: Settings, name: str, where: str) -> int | Size:
    """A short side, or height and width."""
    size = settings.get(name)
    if isinstance(size, int) and size:
        return size
    given = {key: value for key, value in size.items() if value} if isinstance(size, Mapping) else {}
    if given.keys() == {"shortest_edge"}:
        return int(given["shortest_edge"])
    if given.keys() == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    raise _refused(where, f"{name}={size}", "give shortest_edge, or height and width")


def _complete(settings: Settings) -> Settings:
    """The settings with those of their class where they are missing."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    processor = getattr(transformers, f"{kind}Pil", None)
    if processor is None:
        return settings
    bits = {name: settings[name] for name in ("bits",) if name in settings}
    return {**processor.from_dict(dict(settings)).to_dict(), "image_processor_type": kind, **bits}


def _refused(where: str, what: str, remedy: str) -> ValueError:
    return ValueError(f"the preprocessor_config.json of {where} has {what}: {remedy}")
