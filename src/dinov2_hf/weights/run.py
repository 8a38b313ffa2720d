"""Runs and their checkpoints: the config is read at once, tensors when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..backbones import Dinov2Config
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
    opened = open_checkpoint(checkpoint)
    run, student = opened.config, place.student
    if student not in run.models:
        others = ", ".join(filter(None, run.models)) or "none besides the one"
        raise ValueError(f"the run of {checkpoint} has no student {student!r}; its further students: {others}")
    architecture = run.models[student].architecture() | {"image_size": run.crops.global_size}
    del architecture["attn_implementation"]
    if place.network == "teacher":
        architecture["drop_path_rate"] = 0.0  # as the run itself builds it
    inside = find_objective(run).places_of(run)[student]

    def read(prefix: str) -> Mapping[str, Tensor]:
        if place.device != "meta":
            opened.require_contents()
        return tensors_of(read_model_tensors(checkpoint, place.device, prefix), prefix)

    return Weights(
        f"{place.key}={checkpoint}",
        f"checkpoint of a run, {find_objective(run).describe(run)}",
        Dinov2Config.preset(run.models[student].preset, **architecture),
        lambda network: read(f"{inside.student if network == 'student' else inside.average}."),
        place.network,
        has_student=True,
        preprocessor=preprocessor_config(evaluation_transform(run)),
        run=RunFolder.of_checkpoint(checkpoint),
        run_config=run,
        checkpoint=checkpoint,
        step=opened.state.step,
        student=student,
        digest=opened.digest,
        read_centering=lambda: read("centering."),
    )


FORMAT = Format(holds=lambda place: checkpoint_at(Path(place.path)) is not None, read=read_run)
