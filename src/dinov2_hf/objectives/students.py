"""What both distillations share: several students of one frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..backbones import CropGroup, Tokens
from ..backbones.batch_norm import average_running_statistics
from ..config import public_name
from ..config.objectives.students import DistillationRunConfig
from ..data import SSLBatch
from .base import Objective, ObjectiveOutput, Places, Term, backbone_of
from .teachers import FrozenTeacher

Students = TypeVar("Students", bound=DistillationRunConfig)


class Distillation(Objective[Students]):
    """Base of the distillations: students, their averages, and a frozen teacher that is not part of the module.

    Args:
        config: the run; `model` is the first student, `students` are further ones that learn from the same forward of
            the teacher.
        teachers: the frozen one, under `distill.teacher`.

    Raises:
        ValueError: the teacher takes images of other channels than the students.
    """

    label = "Distilling"

    def __init__(self, config: Students, teachers: Mapping[str, FrozenTeacher]) -> None:
        super().__init__(config)
        teacher = teachers["distill.teacher"]
        if len(teacher.mean) != config.model.num_channels:
            raise ValueError(
                f"model.num_channels={config.model.num_channels}, but the teacher's images have {len(teacher.mean)} "
                "channels; give students and teacher the same kind of images"
            )
        self._frozen = (teacher.requires_grad_(False).eval(),)  # in a tuple, torch does not take it for a submodule
        self.build_students()
        for student, _ in self.networks.values():
            for name, parameter in backbone_of(student).named_parameters():
                if name.endswith("mask_token"):  # nothing is masked
                    parameter.requires_grad_(False)

    @classmethod
    def places_of(cls, config: Students) -> dict[str, Places]:
        further = {name: Places(f"further.{name}.student", f"further.{name}.average") for name in config.students}
        return {"": Places("student", "average")} | further

    @torch.no_grad()
    def update_averages(self, values: Any) -> None:
        """As for every objective; running statistics too, because the averages see no batch."""
        super().update_averages(values)
        for student, average in self.networks.values():
            average_running_statistics(average, student, values.teacher_momentum)

    @property
    def teacher(self) -> FrozenTeacher:
        """The frozen one."""
        return self._frozen[0]

    @property
    def frozen(self) -> list[FrozenTeacher]:
        return list(self._frozen)

    def add(self, output: ObjectiveOutput, student: str, terms: dict[str, Tensor]) -> None:
        """Adds the terms of a student to the loss."""
        declared = self.terms_of(self.config)
        for name, term in terms.items():
            name = f"{student}.{name}" if student else name
            output.loss = output.loss + declared[name].weight * term
            output.terms[name] = term.detach()


def terms_of_students(config: DistillationRunConfig, terms: dict[str, Term]) -> dict[str, Term]:
    """Declares the terms for every student: those of further students bear their name."""
    return {f"{student}.{name}" if student else name: term for student in config.models for name, term in terms.items()}


def path_of_teacher(config: DistillationRunConfig) -> str:
    """Returns the teacher's path, which a checked configuration has."""
    return cast(str, config.distill.teacher)


def describe_teacher(config: DistillationRunConfig) -> str:
    """Returns what may be published of the teacher's path: its name on the Hub, or its last part."""
    return public_name(path_of_teacher(config))


def teacher_rows(config: DistillationRunConfig) -> dict[str, str | None]:
    """Returns the rows of a model card on the teacher."""
    return {"Teacher": describe_teacher(config)}


def tokens_of(student: nn.ModuleDict, batch: SSLBatch, wanted: Tensor) -> tuple[Tokens, Tensor]:
    """Returns CLS and patches of the global crops, and CLS of the local crops, of a student that masks nothing."""
    views = [CropGroup(batch.global_crops, wanted=wanted)]
    if len(batch.local_crops):
        views.append(CropGroup(batch.local_crops))
    seen, *local = backbone_of(student).tokens(views)
    return seen, local[0].cls if local else seen.cls[:0]
