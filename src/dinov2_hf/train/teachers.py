"""Opening the frozen teachers of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from ..backbones import Backbone, Dinov2Model, load_stock_backbone
from ..config import ColorsConfig
from ..objectives import FrozenTeacher, PrototypeTeacher, Teacher, tensors_of
from ..runs.checkpoint import checkpoint_at
from ..weights.run import Source, read_source

logger = logging.getLogger(__name__)


@dataclass
class _Opened:
    where: str
    backbone: Backbone
    tensors: dict[str, Tensor]
    normalization: tuple[list[float], list[float]]

    def build(self) -> Backbone:
        return self.backbone

    def heads(self) -> dict[str, dict[str, Tensor]]:
        names = {name.partition(".")[0] for name in self.tensors} - {"backbone"}
        return {name: tensors_of(self.tensors, f"{name}.") for name in names}


def open_teacher(key: str, teacher: Teacher) -> FrozenTeacher:
    """Opens the teacher that the key `key` names.

    Raises:
        FileNotFoundError: nothing at its path.
        ValueError: what is there cannot be a teacher, or is damaged.
    """
    path, where = teacher.path, f"{key}={teacher.path}"
    if checkpoint_at(Path(path)) or Path(path).is_file() or teacher.build == PrototypeTeacher.of:
        source = _read(path, key)
        backbone = _build_backbone(source, where)
        return teacher.build(_Opened(where, backbone, dict(source.teacher), _normalization_of(source, path)))
    network = load_stock_backbone(path, where)
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        processor = None
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    normalization = (mean, std) if mean and std else _imagenet_normalization(path)
    return teacher.build(_Opened(where, network, {}, normalization))


def _build_backbone(source: Source, where: str) -> Dinov2Model:
    config = source.config
    if source.num_attention_heads is None:  # an original file does not say; all released models have heads of 64
        config.num_attention_heads = config.hidden_size // 64
    config._attn_implementation = "sdpa" if torch.accelerator.is_available() else "eager"
    backbone = Dinov2Model(config)
    try:
        backbone.load_state_dict(tensors_of(source.teacher, "backbone."))
    except RuntimeError as error:
        raise ValueError(f"{where} is damaged: {error}") from None
    return backbone


def _normalization_of(source: Source, path: str) -> tuple[list[float], list[float]]:
    if source.normalization:
        return source.normalization
    channels = source.config.num_channels
    return _imagenet_normalization(path) if channels == 3 else ([0.0] * channels, [1.0] * channels)


def _imagenet_normalization(path: str) -> tuple[list[float], list[float]]:
    logger.warning("%s does not say how its images are normalised; ImageNet's mean and std are taken", path)
    return ColorsConfig().mean, ColorsConfig().std


def _read(path: str, key: str) -> Source:
    try:
        return read_source(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("init.path=", f"{key}=")) from None
