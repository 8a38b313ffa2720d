"""Weights of a run, or of anything else, to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import Dinov2Config
from ..config import load_saved_config
from ..files import CONFIG_FILE
from ..objectives import find_objective, tensors_of
from ..runs.checkpoint import checkpoint_at, read_model_tensors
from ..runs.integrity import require_whole
from .read import read_weights


@dataclass
class Source:
    """Weights to start from: `backbone.…` and, where there are any, `dino_head.…` and `ibot_head.…`."""

    name: str
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    config: Dinov2Config
    """Of the backbone."""
    num_attention_heads: int | None
    """None where nothing tells."""
    centering: Mapping[str, Tensor] = field(default_factory=dict)
    normalization: tuple[list[float], list[float]] | None = None
    """Mean and standard deviation of its images, per channel; None where nothing tells."""


def read_source(path: str) -> Source:
    """The weights at `path`: a run or one of its checkpoints, or what `weights.read_weights` reads.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is damaged, or not of a DINOv2 model.
    """
    checkpoint = checkpoint_at(Path(path))
    if checkpoint is not None:
        return read_run(checkpoint)
    weights = read_weights(path, "init.path", dtype=torch.float32)
    tensors = weights.heads | {f"backbone.{name}": value for name, value in weights.backbone.items()}
    heads = weights.config.num_attention_heads if weights.knows_num_attention_heads else None
    told = weights.preprocessor or {}
    normalization = (told["image_mean"], told["image_std"]) if {"image_mean", "image_std"} <= told.keys() else None
    return Source(path, tensors, tensors, weights.config, heads, normalization=normalization)


def read_run(checkpoint: Path, student: str = "", device: str = "cpu") -> Source:
    """The weights of a run at one of its checkpoints.

    Args:
        checkpoint: the folder.
        student: the name of a further student of a distillation.
        device: `meta` for shapes and types alone.

    Raises:
        ValueError: a checkpoint that is damaged, or without that student.
    """
    require_whole(checkpoint, contents=device != "meta")
    run = load_saved_config(checkpoint / CONFIG_FILE)
    tensors = read_model_tensors(checkpoint, device)
    models = run.models
    if student not in models:
        others = ", ".join(filter(None, models)) or "none besides the one"
        raise ValueError(f"the run of {checkpoint} has no student {student!r}; its further students: {others}")
    architecture = models[student].architecture() | {"image_size": run.crops.global_size}
    config = Dinov2Config.preset(models[student].preset, **architecture)
    place = find_objective(run).places_of(run)[student]
    return Source(
        str(checkpoint),
        tensors_of(tensors, f"{place.student}."),
        tensors_of(tensors, f"{place.average}."),
        config,
        config.num_attention_heads,
        tensors_of(tensors, "centering."),
        (run.colors.mean, run.colors.std),
    )
