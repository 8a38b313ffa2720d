"""Features of images in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel

from ..backbones import StockBackbone
from ..config import SourceConfig
from ..config.checks import multiple_of_patch
from ..data import EvalTransform, default_colors
from ..data.broken import recording, unique
from ..data.sources import HeldImages, ImageColumn, encoded_images, holding, is_sequence, open_images
from ..data.transform import resize_for
from ..features import FeatureExtractor, FeatureSet, gather_features, open_backbone
from ..weights.base import default_side
from .process import unchanged_process, usable_device

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_backbone(
    model: str | PathLike[str] | nn.Module | FeatureExtractor,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
) -> FeatureExtractor:
    """Loads a frozen backbone for features, evaluation and pictures.

        backbone = load_backbone("runs/vits14")
        (last,) = backbone.features(pixels, 1)       # pixels [B, C, H, W], normalised
        last.cls, last.patches                       # [B, D], [B, D, h, w]

    Args:
        model: a run's folder or one of its checkpoints, an export, a folder that transformers loads or its name on the
            Hub, an original `.pth` file, a file under timm's names or an ONNX file of ours; a model of transformers or
            a `Backbone` in memory, which is frozen and moved; or what this function returned.
        device: such as `cpu` or `cuda:1`; default: the GPU where there is one.
        precision: of the weights and the computation.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: what is there is damaged, or has no patches; the device cannot be used.
        ImportError: an ONNX file, and onnx is not installed.
    """
    if isinstance(model, FeatureExtractor):
        return model
    place, dtype = usable_device(device), _DTYPES[precision]
    if isinstance(model, (str, PathLike)):
        return open_backbone(os.fspath(model), place, dtype, "model")
    backbone: Any = model
    if isinstance(model, PreTrainedModel) and not hasattr(model, "blocks"):
        backbone = StockBackbone(model)
    return FeatureExtractor.of(backbone, _transform_of(backbone), type(model).__name__, place, dtype)


def extract_features(
    model: str | PathLike[str] | nn.Module | FeatureExtractor,
    images: Any,
    *,
    parts: Sequence[str] = ("cls",),
    layers: int = 1,
    image_size: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    cache: str | PathLike[str] | None = None,
) -> FeatureSet:
    """Extracts features of images, prepared as the preprocessor of the model says.

        found = extract_features("runs/vits14", "photographs", parts=("cls", "patches"))
        found["cls"], found["patches"], found.names     # [N, D], [N, D, h, w], N names

    An image that cannot be decoded is left out, named in the log and listed in `broken`.

    Args:
        model: as of `load_backbone`.
        images: a path or the name of a set on the Hub, as `data.train.path` takes it; a `datasets.Dataset`; or a
            sequence or iterable of images: paths, bytes of encoded images, arrays, tensors or PIL images.
        parts: `cls`; `mean` or `gem` of the patches (generalised mean, power 3); `patches`.
        layers: the last so many blocks.
        image_size: side of the square crops in pixels, a multiple of the patch size; images are resized to 256 / 224
            of it, or to it where it is below 96. Default: as the preprocessor says.
        batch_size: images per forward.
        num_workers: processes that decode; 0 to do it in this process.
        device: as of `load_backbone`.
        precision: as of `load_backbone`.
        cache: folder where features are kept for the next call with the same model and images.

    Raises:
        FileNotFoundError, ValueError: nothing there, or it cannot be read; a part that does not exist.
        TypeError: an object that holds no images.
    """
    with unchanged_process(device), _opened(images) as opened:
        backbone = load_backbone(model, device=device, precision=precision)
        transform = backbone.transform
        if image_size is not None:
            multiple_of_patch("image_size", image_size, backbone.stride)
            transform = replace(transform, resize_size=resize_for(image_size), crop_size=image_size)
        accelerator = Accelerator(cpu=backbone.device.type == "cpu")
        with recording() as broken:
            found = gather_features(
                backbone,
                opened,
                transform,
                accelerator,
                layers=layers,
                parts=parts,
                batch_size=batch_size,
                num_workers=num_workers,
                cache=None if cache is None else Path(cache).expanduser(),
            )
    parts_of = {name: part.cpu() for name, part in found.parts.items()}
    names = [opened.name_at(row) for row in found.index.tolist()]
    return FeatureSet(found.index.cpu(), parts_of, names, unique(broken))


@contextmanager
def _opened(images: Any) -> Iterator[ImageColumn | HeldImages]:
    """The images that a caller gives, at random access, while the block runs.

    Raises:
        ValueError, TypeError: nothing there that can be read.
    """
    if isinstance(images, (str, os.PathLike, Dataset, DatasetDict)):
        with holding({"images": images}) as paths:
            yield open_images(SourceConfig(path=paths["images"]), streaming=False, name="images")
    elif is_sequence(images):
        yield HeldImages(images, "images")
    elif isinstance(images, Iterable):
        yield encoded_images(images, "images")
    else:
        raise TypeError(
            f"images is an object of the type {type(images).__name__}; give a path, a datasets.Dataset, or a sequence "
            "or iterable of images"
        )


def _transform_of(backbone: Any) -> EvalTransform:
    """How images are prepared for a model in memory: crops as the released models take them."""
    config = getattr(backbone, "config", None)
    channels = getattr(config, "num_channels", 3)
    side = default_side(config) if config is not None else 224
    return EvalTransform.of_crop(side, *default_colors(channels))
