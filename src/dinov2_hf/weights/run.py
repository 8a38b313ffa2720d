"""Runs and their checkpoints: the config is read at once, tensors when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..backbones import PretrainedBackbone, find_family
from ..data import evaluation_transform, preprocessor_config
from ..objectives import find_objective
from ..runs import RunFolder
from ..runs.checkpoint import checkpoint_at, read_model_tensors
from ..runs.integrity import open_checkpoint
from .base import Format, Place, Weights
from .tensors import tensors_of


def read_run(place: Place) -> Weights:
    """Reads a run's newest checkpoint, or the one at the place.

    The small files are compared with their checksums at once, those of the tensors once, before the first is read.

    Raises:
        ValueError: a checkpoint that is damaged, or without that student.
    """
    checkpoint = checkpoint_at(Path(place.path))
    assert checkpoint is not None, place.where
    opened = open_checkpoint(checkpoint)
    run, student = opened.config, place.student
    if student not in run.models:
        others = ", ".join(filter(None, run.models)) or "none besides the one"
        raise ValueError(f"the run of {checkpoint} has no student {student!r}; its further students: {others}")
    section = copy.copy(run.models[student])
    if hasattr(section, "attn_implementation"):  # that of training may not be installed here
        section.attn_implementation = "auto"
    family = find_family(section.family)
    with torch.device("meta"):  # the average drops nothing
        drop_path_rate = section.drop_path_rate if place.network == "student" else 0.0
        config = cast(PretrainedBackbone, family.build(section, run.crops.global_size, drop_path_rate)).config
    if getattr(family.backbone, "_supports_sdpa", False):  # not that of training
        config._attn_implementation = "sdpa"
    inside = find_objective(run).places_of(run)[student]

    def read(prefix: str) -> Mapping[str, Tensor]:
        if place.device != "meta":
            opened.require_contents()
        return tensors_of(read_model_tensors(checkpoint, place.device, prefix), prefix)

    return Weights(
        f"{place.key}={checkpoint}",
        f"checkpoint of a run, {find_objective(run).describe(run)}",
        config,
        lambda network: read(f"{inside.student if network == 'student' else inside.average}."),
        place.network,
        has_student=True,
        preprocessor=preprocessor_config(evaluation_transform(run)),
        run=RunFolder.of_checkpoint(checkpoint),
        run_config=run,
        checkpoint=checkpoint,
        step=opened.state.step,
        make=family.backbone,
        student=student,
        digest=opened.digest,
        read_centering=lambda: read("centering."),
    )


FORMAT = Format(holds=lambda place: checkpoint_at(Path(place.path)) is not None, read=read_run)
