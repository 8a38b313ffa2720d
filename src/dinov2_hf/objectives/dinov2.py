"""The DINOv2 objective over a student and its teacher (Oquab et al., 2023, section 4).

Axes: `V` views, `B` images, `N` patches, `D` width, `K` prototypes, `M` masked patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..backbones import find_family, recompute_blocks
from ..config import PretrainConfig
from ..data.batch import SSLBatch
from .base import Students, build_heads
from .diagnostics import diagnose_batch
from .prototypes import build_centering, packed_positions, prototype_targets, prototype_terms, weighted_sum


@dataclass
class ObjectiveOutput:
    """The objective of a batch and its terms, scalars in float32."""

    loss: Tensor
    """What is minimised: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """`dino_global`, `dino_local`, `ibot`, `koleo`: those that are switched on, before their weights; detached."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Signs of health of the global batch, where they were asked for; see `objectives.diagnostics`."""


class DINOv2Pretraining(Students):
    """Student, teacher and objective in one module. The teacher is the student's moving average.

    `student` and `teacher` hold a `backbone`, a `dino_head` and, if iBOT has a head of its own, an `ibot_head`. The
    teacher starts as a copy of the student and never masks anything.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.student = nn.ModuleDict(self.build_networks(config.model.drop_path_rate))
        self.teacher = nn.ModuleDict(self.build_networks(drop_path_rate=0.0))
        if config.model.gradient_checkpointing:
            recompute_blocks(self.student["backbone"])
        self.copy_students_to_averages()
        self.teacher.requires_grad_(False)
        if config.model.compile:
            self.compile_layers(self.student, self.teacher)
        self.centering = build_centering(config)

    @property
    def students(self) -> dict[str, nn.ModuleDict]:
        return {"": self.student}

    @property
    def averages(self) -> dict[str, nn.ModuleDict]:
        return {"": self.teacher}

    def build_networks(self, drop_path_rate: float, student: str = "") -> dict[str, nn.Module]:
        """Backbone and heads as the config asks for, with fresh weights."""
        backbone = find_family("dinov2").build(self.config.model, self.config.crops.global_size, drop_path_rate)
        return {"backbone": backbone, **build_heads(self.config, backbone.width)}

    def forward(self, batch: SSLBatch, teacher_temp: float, diagnose: bool = False) -> ObjectiveOutput:
        """The objective of a batch whose crops are normalised floats. Collective: call on all ranks.

        Args:
            batch: crops, masks and mask indices, see `SSLBatch`.
            teacher_temp: temperature of the teacher's targets at this step.
            diagnose: fill `ObjectiveOutput.diagnostics` too.
        """
        config, student = self.config, self.student
        num_global, num_masked = len(batch.global_crops), len(batch.mask_indices)
        views = [batch.global_crops]
        masks = [batch.masks]
        if len(batch.local_crops):
            views, masks = views + [batch.local_crops], masks + [None]
        global_positions, local_positions = packed_positions(batch, student["backbone"].config)

        with torch.no_grad():
            teacher_tokens = self.teacher["backbone"].forward_at(global_positions, [batch.global_crops])
            teacher_cls, teacher_patches = teacher_tokens.split([num_global, num_masked])
            targets = prototype_targets(
                config, self.teacher, self.centering, teacher_cls, teacher_patches, teacher_temp
            )

        positions = torch.cat((global_positions, local_positions))
        tokens = student["backbone"].forward_at(positions, views, masks)
        global_cls, patches, local_cls = tokens.split([num_global, num_masked, len(batch.local_crops)])
        terms = prototype_terms(config, student, global_cls, local_cls, patches, batch.mask_weights, targets)
        output = ObjectiveOutput(weighted_sum(config, terms), {name: term.detach() for name, term in terms.items()})
        if diagnose:
            output.diagnostics = diagnose_batch(global_cls, teacher_cls, targets)
        return output
