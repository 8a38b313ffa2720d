"""What the objectives of pretraining share: a student against the targets of its moving average.

Axes: `B` images, `N` patches, `D` width, `M` masked patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from ..backbones import CropGroup, Tokens
from ..config import PretrainingRunConfig
from ..data import SSLBatch
from .base import Objective, ObjectiveOutput, Places, Term, backbone_of
from .diagnostics import diagnose_batch
from .further import FURTHER_TERMS, TermInput
from .prototypes import prototype_answers
from .teachers import FrozenTeacher

Config = TypeVar("Config", bound=PretrainingRunConfig)


class Pretraining(Objective[Config]):
    """Base of the objectives of pretraining. The teacher is the moving average of the student, and masks nothing.

    A subclass defines `own_terms_of`, `build_networks`, `targets` and `student_terms`; with running centres also
    `build_centering`, without prototypes also `diagnose`. `student` and `teacher` hold a `backbone` and the heads on
    it.
    """

    label = "Pretraining"
    sees_all_patches: ClassVar[bool] = False
    """Whether `targets` and `student_terms` get all patches of the global crops, or the masked ones only."""
    student: nn.ModuleDict
    teacher: nn.ModuleDict

    def __init__(self, config: Config, teachers: Mapping[str, FrozenTeacher] | None = None) -> None:
        super().__init__(config)
        self.build_students()
        self.centering = self.build_centering()
        if config.terms:
            self.terms = nn.ModuleDict({name: FURTHER_TERMS[name](term, self) for name, term in config.terms.items()})

    @classmethod
    def own_terms_of(cls, config: Config) -> dict[str, Term]:
        """Declares the terms of the objective itself that are switched on."""
        raise NotImplementedError

    def build_centering(self) -> nn.ModuleDict:
        """Builds what the targets depend on and every update changes, such as running centres; default: nothing."""
        return nn.ModuleDict()

    def targets(self, tokens: Tokens, batch: SSLBatch, values: Any) -> Mapping[str, Any]:
        """Makes what the student is compared with out of the teacher's tokens of the global crops. Collective.

        By term: assignments to prototypes (`Assignments`), or what the objective compares without them.

        Args:
            tokens: CLS `[2B, D]`, crop by crop, and patches, see `sees_all_patches`.
        """
        raise NotImplementedError

    def student_terms(
        self, tokens: Tokens, local_cls: Tensor, batch: SSLBatch, targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Computes the terms of the objective itself, before their weights. Collective.

        Args:
            tokens: of the global crops as the student sees them: CLS `[2B, D]`, crop by crop, and patches.
            local_cls: CLS of the local crops `[n B, D]`, crop by crop.
        """
        raise NotImplementedError

    def diagnose(
        self,
        seen: Tokens,
        seen_by_teacher: Tokens,
        batch: SSLBatch,
        targets: Mapping[str, Any],
        terms: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Returns the signs of health of the global batch; default: those of prototypes. Collective.

        Args:
            seen: tokens of the global crops as the student sees them.
            seen_by_teacher: those of the teacher.
            targets: of `targets`.
            terms: of `student_terms`.
        """
        answers = prototype_answers(terms, batch.mask_weights, len(seen.cls))
        return diagnose_batch(seen.cls, seen_by_teacher.cls, targets, answers)

    @classmethod
    def terms_of(cls, config: Config) -> dict[str, Term]:
        further = {name: Term(term.weight, FURTHER_TERMS[name].title) for name, term in config.terms.items()}
        return cls.own_terms_of(config) | further

    @classmethod
    def places_of(cls, config: Config) -> dict[str, Places]:
        return {"": Places("student", "teacher")}

    def forward(self, batch: SSLBatch, values: Any, diagnose: bool = False) -> ObjectiveOutput:
        config, student, teacher = self.config, self.student, self.teacher
        masked = batch.mask_indices
        whole = batch.all_patches if config.terms or self.sees_all_patches else None
        wanted = masked if whole is None else whole
        masks = batch.masks if backbone_of(student).takes_masks else None  # there are none then
        views = [CropGroup(batch.global_crops, masks, wanted)]
        if len(batch.local_crops):
            views.append(CropGroup(batch.local_crops))
        compared = None if self.sees_all_patches else whole
        with torch.no_grad():
            (seen_by_teacher,) = backbone_of(teacher).tokens([CropGroup(batch.global_crops, wanted=wanted)])
            targets = self.targets(_at(seen_by_teacher, masked, compared), batch, values)
        seen, *local = backbone_of(student).tokens(views)
        local_cls = local[0].cls if local else seen.cls[:0]
        terms = self.student_terms(_at(seen, masked, compared), local_cls, batch, targets)
        for name in config.terms:
            terms[name] = self.terms[name](TermInput(batch, values, seen, seen_by_teacher))
        declared = self.terms_of(config)
        loss = cast(Tensor, sum(declared[name].weight * term for name, term in terms.items()))
        output = ObjectiveOutput(loss, {name: term.detach() for name, term in terms.items()})
        if diagnose:
            output.diagnostics = self.diagnose(seen, seen_by_teacher, batch, targets, terms)
        return output


def _at(tokens: Tokens, masked: Tensor, whole: Tensor | None) -> Tokens:
    """The tokens with the masked patches only, where all patches were asked for."""
    return tokens if whole is None else Tokens(tokens.cls, tokens.patches.index_select(0, masked))
