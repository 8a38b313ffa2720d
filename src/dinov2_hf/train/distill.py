"""A distillation run: the loop of pretraining with a frozen teacher."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoImageProcessor

from ..backbones import Dinov2Model, load_stock_backbone
from ..config import ColorsConfig, DistillConfig
from ..objectives import DINOHead, Distillation, FeatureTeacher, PrototypeTeacher, Students, tensors_of
from ..runs.checkpoint import checkpoint_at
from ..weights.run import Source, read_source
from .loop import Pretrainer

logger = logging.getLogger(__name__)


class Distiller(Pretrainer):
    """A distillation run: `Distiller(config, accelerator).run()`, for the rest as `Pretrainer`."""

    _description = "Distilling"
    config: DistillConfig

    def _build_model(self) -> Students:
        read = read_prototype_teacher if self.config.distill.objective == "prototypes" else read_feature_teacher
        teacher = read(self.config.distill.teacher)
        if self.accelerator.is_main_process:
            millions = sum(parameter.numel() for parameter in teacher.parameters()) / 1e6
            logger.info("the teacher is %s: %.1f M parameters, frozen", self.config.distill.teacher, millions)
        torch.manual_seed(self.config.train.seed)  # reading a teacher may draw
        return Distillation(self.config, teacher)


def read_prototype_teacher(path: str) -> PrototypeTeacher:
    """The teacher of a run, an export with heads, or an original `.pth` with heads.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: what is there has no heads, or is damaged.
    """
    source = _read(path)
    names = sorted({name.partition(".")[0] for name in source.teacher} & {"dino_head", "ibot_head"})
    if not names:
        raise ValueError(
            f"distill.teacher={path} has no heads; give a run or an export that has, or use distill.objective=features"
        )
    try:
        heads = {name: DINOHead.from_state(tensors_of(source.teacher, f"{name}.")) for name in names}
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"distill.teacher={path} is damaged: {error}") from None
    return PrototypeTeacher(_build_backbone(source, path), heads, *_normalization_of(source, path))


def read_feature_teacher(path: str) -> FeatureTeacher:
    """What a prototype teacher may be, heads or not, or any vision transformer that `AutoModel` loads.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no vision transformer, or damaged.
    """
    if checkpoint_at(Path(path)) or Path(path).is_file():
        source = _read(path)
        return FeatureTeacher(_build_backbone(source, path), *_normalization_of(source, path))
    network = load_stock_backbone(path, f"distill.teacher={path}")
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        processor = None
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return FeatureTeacher(network, *((mean, std) if mean and std else _imagenet_normalization(path)))


def _build_backbone(source: Source, path: str) -> Dinov2Model:
    config = source.config
    if source.num_attention_heads is None:  # an original file does not tell; all released models have heads of 64
        config.num_attention_heads = config.hidden_size // 64
    config._attn_implementation = "sdpa" if torch.accelerator.is_available() else "eager"
    backbone = Dinov2Model(config)
    try:
        backbone.load_state_dict(tensors_of(source.teacher, "backbone."))
    except RuntimeError as error:
        raise ValueError(f"distill.teacher={path} is damaged: {error}") from None
    return backbone


def _normalization_of(source: Source, path: str) -> tuple[list[float], list[float]]:
    if source.normalization:
        return source.normalization
    channels = source.config.num_channels
    return _imagenet_normalization(path) if channels == 3 else ([0.0] * channels, [1.0] * channels)


def _imagenet_normalization(path: str) -> tuple[list[float], list[float]]:
    logger.warning("%s does not tell how its images are normalised; ImageNet's mean and std are taken", path)
    return ColorsConfig().mean, ColorsConfig().std


def _read(path: str) -> Source:
    try:
        return read_source(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("init.path=", "distill.teacher=")) from None
