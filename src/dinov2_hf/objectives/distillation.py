"""Distillation: students learn from a frozen teacher (DINOv2, section 5, "Model distillation").

With prototypes this is the pretraining objective with a frozen teacher and its heads: nothing is masked, and iBOT
compares all patches of both global crops. With features, the student's CLS and patches imitate those of any vision
model.

Axes: `V` views, `B` images, `N` patches, `D` width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbones import Dinov2Config, find_family, recompute_blocks
from ..config import DistillConfig, ModelConfig
from ..data.batch import SSLBatch
from .base import Students, build_heads
from .diagnostics import diagnose_batch
from .dinov2 import ObjectiveOutput
from .prototypes import build_centering, ibot_head_name, packed_positions, prototype_targets, prototype_terms
from .teachers import FeatureTeacher, PrototypeTeacher
from .terms import feature_loss


class Distillation(Students):
    """Students, their averages, and the objective. The teacher is no submodule: no checkpoint and no optimiser has it.

    Args:
        config: the run; `model` is the first student, `students` are further ones that learn from the same teacher
            forward.
        teacher: `PrototypeTeacher` or `FeatureTeacher`, as `distill.objective` asks for.

    Raises:
        ValueError: heads or patches of teacher and student do not fit, naming what to set.
    """

    def __init__(self, config: DistillConfig, teacher: PrototypeTeacher | FeatureTeacher) -> None:
        super().__init__()
        self.config = config
        self._frozen = (teacher.requires_grad_(False).eval(),)  # in a tuple, torch does not take it for a submodule
        if len(teacher.mean) != config.model.num_channels:
            raise ValueError(
                f"model.num_channels={config.model.num_channels}, but the teacher's images have {len(teacher.mean)} "
                "channels; students learn from a teacher of their own kind of images"
            )
        if isinstance(teacher, PrototypeTeacher):
            check_prototypes(config, teacher)
        self.student = nn.ModuleDict(self.build_networks(config.model.drop_path_rate))
        self.average = nn.ModuleDict(self.build_networks(0.0))
        self.further = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {
                        "student": nn.ModuleDict(self.build_networks(model.drop_path_rate, name)),
                        "average": nn.ModuleDict(self.build_networks(0.0, name)),
                    }
                )
                for name, model in config.students.items()
            }
        )
        self.copy_students_to_averages()
        for name, average in self.averages.items():
            average.requires_grad_(False)
            self.students[name]["backbone"].embeddings.mask_token.requires_grad_(False)  # nothing is masked
            if self._settings(name).gradient_checkpointing:
                recompute_blocks(self.students[name]["backbone"])
            if self._settings(name).compile:
                self.compile_layers(self.students[name], average)
        self.centering = build_centering(config) if self.has_prototypes else nn.ModuleDict()

    @property
    def teacher(self) -> PrototypeTeacher | FeatureTeacher:
        """The frozen one."""
        return self._frozen[0]

    @property
    def has_prototypes(self) -> bool:
        """Whether the objective is over prototypes, not features."""
        return isinstance(self.teacher, PrototypeTeacher)

    @property
    def students(self) -> dict[str, nn.ModuleDict]:
        return {"": self.student, **{name: pair["student"] for name, pair in self.further.items()}}

    @property
    def averages(self) -> dict[str, nn.ModuleDict]:
        return {"": self.average, **{name: pair["average"] for name, pair in self.further.items()}}

    def _settings(self, student: str) -> ModelConfig:
        return self.config.students[student] if student else self.config.model

    def build_networks(self, drop_path_rate: float, student: str = "") -> dict[str, nn.Module]:
        """Backbone and heads (prototypes) or projectors (features) of a student, with fresh weights."""
        backbone = find_family("dinov2").build(self._settings(student), self.config.crops.global_size, drop_path_rate)
        width = backbone.width
        if self.has_prototypes:
            return {"backbone": backbone, **build_heads(self.config, width)}
        target = self.teacher.width
        return {
            "backbone": backbone,
            "cls_projector": nn.Linear(width, target),
            "patch_projector": nn.Linear(width, target),
        }

    def place_teacher(self, device: torch.device, dtype: torch.dtype, sharded: bool) -> None:
        self.teacher.place(device, dtype, sharded)

    def forward(self, batch: SSLBatch, teacher_temp: float, diagnose: bool = False) -> ObjectiveOutput:
        """The objective of a batch whose crops are normalised floats; for each student the same. Collective.

        Args:
            batch: crops; masks play no part.
            teacher_temp: temperature of the teacher's targets at this step (prototypes).
            diagnose: fill `ObjectiveOutput.diagnostics` too, of the first student.
        """
        return self._by_prototypes(batch, teacher_temp, diagnose) if self.has_prototypes else self._by_features(batch)

    def _by_prototypes(self, batch: SSLBatch, teacher_temp: float, diagnose: bool) -> ObjectiveOutput:
        config = self.config

        def targets_of(heads: nn.ModuleDict, cls: Tensor, patches: Tensor):
            return prototype_targets(config, heads, self.centering, cls, patches, teacher_temp)

        compared = compare_all_patches(batch, self.teacher.backbone.config)
        _, targets = self.teacher(compared, targets_of, config.colors.mean, config.colors.std)
        output = ObjectiveOutput(batch.global_crops.new_zeros(()), {})
        for name, student in self.students.items():
            compared = compare_all_patches(batch, student["backbone"].config)
            global_cls, patches, local_cls = _tokens(student, compared)
            terms = prototype_terms(config, student, global_cls, local_cls, patches, compared.mask_weights, targets)
            self._add(output, name, terms)
            if diagnose and not name:
                output.diagnostics = diagnose_batch(global_cls, None, targets)
        return output

    def _by_features(self, batch: SSLBatch) -> ObjectiveOutput:
        output = ObjectiveOutput(batch.global_crops.new_zeros(()), {})
        teacher_cls, teacher_map = self.teacher(batch.global_crops, self.config.colors.mean, self.config.colors.std)
        for name, student in self.students.items():
            cls, patches, _ = _tokens(student, compare_all_patches(batch, student["backbone"].config))
            grid = student["backbone"].config.grid_of(*batch.global_crops.shape[-2:])
            target = nn.functional.interpolate(teacher_map, grid, mode="bilinear", antialias=True)
            terms = {}
            for part, features, wanted in (
                ("cls", cls, teacher_cls),
                ("patch", patches, target.flatten(2).transpose(1, 2).flatten(0, 1)),
            ):
                cosine, smooth_l1 = feature_loss(student[f"{part}_projector"](features), wanted)
                terms |= {f"{part}_cosine": cosine, f"{part}_smooth_l1": smooth_l1}
            self._add(output, name, terms)
        return output

    def _add(self, output: ObjectiveOutput, student: str, terms: dict[str, Tensor]) -> None:
        """Adds a student's terms to the objective; those of further students bear their name."""
        for name, term in terms.items():
            output.loss = output.loss + self.config.weight_of(name) * term
            output.terms[f"{student}.{name}" if student else name] = term.detach()


def _tokens(student: nn.ModuleDict, batch: SSLBatch) -> tuple[Tensor, Tensor, Tensor]:
    """CLS of the global crops `[2B, D]`, the compared patches `[M, D]`, CLS of the local crops."""
    views = [batch.global_crops] + [batch.local_crops] * bool(len(batch.local_crops))
    backbone = student["backbone"]
    tokens = backbone.forward_at(torch.cat(packed_positions(batch, backbone.config)), views)
    return tokens.split([len(batch.global_crops), len(batch.mask_indices), len(batch.local_crops)])


def compare_all_patches(batch: SSLBatch, backbone: Dinov2Config) -> SSLBatch:
    """A batch in which nothing is masked and every patch that the backbone makes of the global crops is compared."""
    crops, device = len(batch.global_crops), batch.global_crops.device
    rows, columns = backbone.grid_of(*batch.global_crops.shape[-2:])
    patches = rows * columns
    return replace(
        batch,
        masks=torch.zeros(crops, patches, dtype=torch.bool, device=device),
        mask_indices=torch.arange(crops * patches, device=device),
        mask_weights=torch.full((crops * patches,), 1 / patches, device=device),
    )


def check_prototypes(config: DistillConfig, teacher: PrototypeTeacher) -> None:
    """Refuses students that cannot answer the teacher's prototypes.

    Raises:
        ValueError: naming the key and the teacher's value.
    """
    wanted = [term for term in ("dino", "ibot") if getattr(config, term).loss_weight]
    names = {"dino": "dino_head", "ibot": ibot_head_name(config)}
    for term in wanted:
        if names[term] not in teacher.heads:
            has = ", ".join(teacher.heads) or "no heads"
            raise ValueError(
                f"the teacher has {has} but {term}.loss_weight={getattr(config, term).loss_weight} needs its "
                f"{names[term]}; set ibot.separate_head={'ibot_head' in teacher.heads}, {term}.loss_weight=0, or "
                "distill.objective=features, which needs no heads"
            )
        there = teacher.heads[names[term]].last_layer.weight_v.shape[0]
        section = "ibot" if names[term] == "ibot_head" else "dino"
        here = getattr(config, section).num_prototypes
        if there != here:
            raise ValueError(f"{section}.num_prototypes={here}, but the teacher has {there}; set it to that")
    patch = teacher.backbone.config.patch_size
    for key, model in {"model": config.model, **{f"students.{n}": m for n, m in config.students.items()}}.items():
        if model.patch_size != patch and config.ibot.loss_weight:
            raise ValueError(
                f"{key}.patch_size={model.patch_size}, but the teacher's patches have {patch} pixels and prototypes "
                f"are compared patch by patch; use {patch}, ibot.loss_weight=0, or distill.objective=features"
            )
