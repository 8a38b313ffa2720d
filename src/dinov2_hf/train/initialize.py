"""Starting from weights that exist: a run of ours, a released model, an export, an original checkpoint.

The short high-resolution stage (DINOv2, section 4, "Adapting the resolution") and continued pretraining begin here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import InitConfig, load_saved_config
from ..models import Dinov2Config, Dinov2Model, resize_position_embeddings, tensors_of
from ..models.convert import read_weights
from ..ssl import Students
from .checkpoint import CONFIG_FILE, find_checkpoints, is_checkpoint, read_model_tensors
from .integrity import require_whole

logger = logging.getLogger(__name__)


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
    """The weights at `path`: a run or one of its checkpoints, or what `models.convert.read_weights` reads.

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


def initialize(model: Students, config: InitConfig) -> bool:
    """Loads the weights at `config.path` into the (first) student and its average; position embeddings are resized.

    A run gives the student its student and the teacher its teacher; all else gives both the same.

    Returns:
        Whether heads stay untrained on a backbone that is not, so that they need a warm-up.

    Raises:
        FileNotFoundError: nothing at `config.path`.
        ValueError: another architecture than the config asks for, naming what to set; a file that is damaged, or not
            of a DINOv2 model.
    """
    source = read_source(config.path)
    missing: set[str] = set()
    for networks, tensors in ((model.students[""], source.student), (model.averages[""], source.teacher)):
        for name, network in networks.items():
            state = tensors_of(tensors, f"{name}.")
            if name == "backbone":
                _load_backbone(network, state, source)
            elif state and config.heads:
                _load(network, state, name, source.name)
            else:
                missing.add(name)  # student and teacher keep the heads they were built with, which are equal
    if not missing and source.centering and source.centering.keys() == model.centering.state_dict().keys():
        model.centering.load_state_dict(source.centering)
    anew = f"; {' and '.join(sorted(missing))} new" if missing else ""
    logger.info(
        "starting from %s: %s%s",
        source.name,
        "one backbone for both" if source.student is source.teacher else "student and teacher",
        anew,
    )
    return bool(missing)


def checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that `path` is, or the newest of the run that wrote into it, whole or damaged."""
    if is_checkpoint(path):
        return path
    found = find_checkpoints(path / "checkpoints")
    return found[-1] if found else None


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
    models = {"": run.model, **getattr(run, "students", {})}
    if student not in models:
        others = ", ".join(filter(None, models)) or "none besides the one"
        raise ValueError(f"the run of {checkpoint} has no student {student!r}; its further students: {others}")
    architecture = models[student].architecture() | {"image_size": run.crops.global_size}
    config = Dinov2Config.preset(models[student].preset, **architecture)
    place = f"further.{student}." if student else ""
    return Source(
        str(checkpoint),
        tensors_of(tensors, f"{place}student."),
        tensors_of(tensors, f"{place}teacher.") or tensors_of(tensors, f"{place}average."),
        config,
        config.num_attention_heads,
        tensors_of(tensors, "centering."),
        (run.colors.mean, run.colors.std),
    )


def _load_backbone(network: Dinov2Model, state: Mapping[str, Tensor], source: Source) -> None:
    try:
        state = resize_position_embeddings(state, network.config, source.config)
    except ValueError as error:
        raise ValueError(f"init.path={source.name}: {error}") from None
    _load(network, state, "backbone", source.name)
    there, here = source.num_attention_heads, network.config.num_attention_heads
    if there is not None and there != here:  # leaves no trace in the shapes
        raise ValueError(
            f"the backbone at init.path={source.name} has {there} attention heads and here it would have {here}; "
            f"set model.num_attention_heads={there}"
        )


def _load(network: nn.Module, state: Mapping[str, Tensor], name: str, source: str) -> None:
    """Loads `state`, and says what to set in the config where it does not fit."""
    wanted = network.state_dict()
    problems = [
        f"{key} is {_shape(state, key)} there and {_shape(wanted, key)} here"
        for key in sorted(wanted.keys() | state.keys())
        if _shape(wanted, key) != _shape(state, key)
    ]
    if problems:
        if name == "backbone":
            keys = "preset", "hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens", "use_swiglu_ffn"
            section, otherwise = "model", ""
        else:
            keys = "num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers"
            section, otherwise = name.removesuffix("_head"), ", or init.heads=false"
        raise ValueError(
            f"the {name} at init.path={source} does not fit: {_summary(problems)}; "
            f"set {', '.join(f'{section}.{key}' for key in keys)} as the source has them{otherwise}"
        )
    network.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"


def _summary(items: list[str]) -> str:
    return items[0] + (f" (and {len(items) - 1} tensors more)" if len(items) > 1 else "")
