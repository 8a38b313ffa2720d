"""The objective of DINOv2 over a student and its moving average (Oquab et al., 2023, section 4).

Axes: `B` images, `N` patches, `D` width, `M` masked patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones import Backbone, CropGroup, Tokens
from ..config import DINOv2RunConfig
from ..data import SSLBatch
from .base import Objective, ObjectiveOutput, Places, Scheduled, Term, backbone_of, register_objective
from .diagnostics import diagnose_batch
from .further import FURTHER_TERMS, TermInput
from .prototypes import (
    build_centering,
    build_heads,
    prototype_answers,
    prototype_recipe,
    prototype_schedules_of,
    prototype_targets,
    prototype_terms,
    prototype_terms_of,
)
from .teachers import FrozenTeacher


@register_objective("dinov2")
class DINOv2(Objective[DINOv2RunConfig]):
    """DINO, iBOT and KoLeo. The teacher is the moving average of the student, and never masks anything.

    `student` and `teacher` hold a `backbone`, a `dino_head` and, if iBOT has a head of its own, an `ibot_head`.
    """

    label = "Pretraining"
    student: nn.ModuleDict
    teacher: nn.ModuleDict

    def __init__(self, config: DINOv2RunConfig, teachers: Mapping[str, FrozenTeacher] | None = None) -> None:
        super().__init__(config)
        self.build_students()
        self.centering = build_centering(config)
        if config.terms:
            self.terms = nn.ModuleDict({name: FURTHER_TERMS[name](term, self) for name, term in config.terms.items()})

    @classmethod
    def terms_of(cls, config: DINOv2RunConfig) -> dict[str, Term]:
        further = {name: Term(term.weight, FURTHER_TERMS[name].title) for name, term in config.terms.items()}
        return prototype_terms_of(config) | further

    @classmethod
    def schedules_of(cls, config: DINOv2RunConfig) -> dict[str, Scheduled]:
        return prototype_schedules_of(config)

    @classmethod
    def places_of(cls, config: DINOv2RunConfig) -> dict[str, Places]:
        return {"": Places("student", "teacher")}

    @classmethod
    def describe(cls, config: DINOv2RunConfig) -> str:
        return "pretrained without labels (DINO + iBOT + KoLeo)"

    @classmethod
    def recipe(cls, config: DINOv2RunConfig) -> dict[str, str | None]:
        return prototype_recipe(config, config.masks[0])

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone = self.build_backbone(student, drop_path_rate)
        return {"backbone": backbone, **build_heads(self.config, backbone.width)}

    def forward(self, batch: SSLBatch, values: Any, diagnose: bool = False) -> ObjectiveOutput:
        config, student, teacher = self.config, self.student, self.teacher
        whole = batch.all_patches if config.terms else None
        wanted = batch.mask_indices if whole is None else whole
        masks = batch.masks if backbone_of(student).takes_masks else None  # there are none then
        views = [CropGroup(batch.global_crops, masks, wanted)]
        if len(batch.local_crops):
            views.append(CropGroup(batch.local_crops))
        with torch.no_grad():
            (seen_by_teacher,) = backbone_of(teacher).tokens([CropGroup(batch.global_crops, wanted=wanted)])
            compared = _at(seen_by_teacher, batch.mask_indices, whole)
            targets = prototype_targets(config, teacher, self.centering, compared, values.teacher_temp)
        seen, *local = backbone_of(student).tokens(views)
        local_cls = local[0].cls if local else seen.cls[:0]
        tokens = _at(seen, batch.mask_indices, whole)
        terms = prototype_terms(config, student, tokens, local_cls, batch.mask_weights, targets)
        for name in config.terms:
            terms[name] = self.terms[name](TermInput(batch, values, seen, seen_by_teacher))
        declared = self.terms_of(config)
        loss = cast(Tensor, sum(declared[name].weight * term for name, term in terms.items()))
        output = ObjectiveOutput(loss, {name: term.detach() for name, term in terms.items()})
        if diagnose:
            answers = prototype_answers(terms, batch.mask_weights, len(tokens.cls))
            output.diagnostics = diagnose_batch(tokens.cls, compared.cls, targets, answers)
        return output


def _at(tokens: Tokens, masked: Tensor, whole: Tensor | None) -> Tokens:
    """The tokens with the masked patches only, where all patches were asked for."""
    return tokens if whole is None else Tokens(tokens.cls, tokens.patches.index_select(0, masked))
