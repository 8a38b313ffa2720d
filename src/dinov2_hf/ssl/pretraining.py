"""The DINOv2 objective over a student and its teacher (Oquab et al., 2023, section 4).

Axes: `B` images, `V` views, `N` patches, `T` tokens, `D` width, `K` prototypes, `M` masked patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import HeadConfig, PretrainConfig
from ..losses import (
    NUM_GLOBAL_CROPS,
    Assignments,
    Logits,
    SoftmaxCentering,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from ..models import DINOHead, Dinov2Config, Dinov2Model
from .batch import SSLBatch
from .diagnostics import diagnose_batch


@dataclass
class PretrainingOutput:
    """The objective of a batch and its terms, scalars in float32."""

    loss: Tensor
    """What is minimised: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """`dino_global`, `dino_local`, `ibot`, `koleo`: those that are switched on, before their weights; detached."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Signs of health of the global batch, where they were asked for; see `ssl.diagnostics`."""


class DINOv2Pretraining(nn.Module):
    """Student, teacher and objective in one module, as accelerate prepares one model with its optimiser.

    `student` and `teacher` hold a `backbone`, a `dino_head` and, if iBOT has a head of its own, an `ibot_head`. The
    teacher starts as a copy of the student, in float32 like it (EMA increments vanish in half precision), takes no
    gradient, and never drops or masks anything.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.student = nn.ModuleDict(self.build_networks(config.model.drop_path_rate))
        self.teacher = nn.ModuleDict(self.build_networks(drop_path_rate=0.0))
        if config.model.gradient_checkpointing:
            self.student["backbone"].gradient_checkpointing_enable({"use_reentrant": False})
        self.copy_student_to_teacher()
        self.teacher.requires_grad_(False)
        if config.model.compile:
            for role in (self.student, self.teacher):
                for layer in role["backbone"].encoder.layer:
                    layer.compile()

        self.centering = nn.ModuleDict()
        if config.teacher.centering == "softmax":
            if config.dino.loss_weight:
                self.centering["dino"] = SoftmaxCentering(config.dino.num_prototypes)
            if config.ibot.loss_weight:
                self.centering["ibot"] = SoftmaxCentering(self._ibot_head_config.num_prototypes)

    @property
    def _ibot_head_config(self) -> HeadConfig:
        return self.config.ibot if self.config.ibot.separate_head else self.config.dino

    @property
    def _ibot_head_name(self) -> str:
        return "ibot_head" if self.config.ibot.separate_head else "dino_head"

    def build_networks(self, drop_path_rate: float) -> dict[str, nn.Module]:
        """Backbone and heads as the config asks for, with fresh weights."""
        config = self.config
        architecture = config.model.architecture() | {
            "drop_path_rate": drop_path_rate,
            "image_size": config.crops.global_size,
        }
        if architecture["attn_implementation"] == "auto":
            architecture["attn_implementation"] = "sdpa" if torch.accelerator.is_available() else "eager"
        backbone = Dinov2Model(Dinov2Config.preset(config.model.preset, **architecture))
        networks: dict[str, nn.Module] = {"backbone": backbone}

        def head(settings: HeadConfig) -> DINOHead:
            return DINOHead(
                backbone.config.hidden_size,
                settings.num_prototypes,
                hidden_dim=settings.hidden_dim,
                bottleneck_dim=settings.bottleneck_dim,
                num_layers=settings.num_layers,
            )

        if config.dino.loss_weight or (config.ibot.loss_weight and not config.ibot.separate_head):
            networks["dino_head"] = head(config.dino)
        if config.ibot.loss_weight and config.ibot.separate_head:
            networks["ibot_head"] = head(config.ibot)
        return networks

    def train(self, mode: bool = True) -> DINOv2Pretraining:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: SSLBatch, teacher_temp: float, diagnose: bool = False) -> PretrainingOutput:
        """The objective of a batch whose crops are normalised floats. Collective: call on all ranks.

        Args:
            batch: crops, masks and mask indices, see `SSLBatch`.
            teacher_temp: temperature of the teacher's targets at this step.
            diagnose: fill `PretrainingOutput.diagnostics` too.
        """
        config, student = self.config, self.student
        num_global, num_masked = len(batch.global_crops), len(batch.mask_indices)
        views = [batch.global_crops]
        masks = [batch.masks]
        if len(batch.local_crops):
            views, masks = views + [batch.local_crops], masks + [None]
        global_positions, local_positions = self._positions(batch)

        with torch.no_grad():
            teacher_tokens = self.teacher["backbone"].forward_at(global_positions, [batch.global_crops])
            teacher_cls, teacher_patches = teacher_tokens.split([num_global, num_masked])
            targets = self._targets(teacher_cls, teacher_patches, teacher_temp)

        positions = torch.cat((global_positions, local_positions))
        tokens = student["backbone"].forward_at(positions, views, masks)
        global_cls, patches, local_cls = tokens.split([num_global, num_masked, len(batch.local_crops)])
        terms: dict[str, Tensor] = {}

        if "dino" in targets:

            def of_crops(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
                features = features.unflatten(0, (-1, batch.num_images))
                return dino_loss(features, prototypes, targets["dino"], config.teacher.student_temp)

            among_global, with_local = student["dino_head"](torch.cat((global_cls, local_cls)), of_crops)
            num_local = len(batch.local_crops) // batch.num_images
            num_pairs = NUM_GLOBAL_CROPS * (NUM_GLOBAL_CROPS - 1 + num_local)
            terms["dino_global"] = among_global / num_pairs
            if num_local:
                terms["dino_local"] = with_local / num_pairs
        if "ibot" in targets:

            def of_patches(features: Tensor, prototypes: Tensor) -> Tensor:
                weights, temp = batch.mask_weights, config.teacher.student_temp
                return ibot_loss(features, prototypes, targets["ibot"], weights, num_global, temp)

            terms["ibot"] = student[self._ibot_head_name](patches, of_patches)
        if config.koleo.loss_weight:
            per_view = [koleo_loss(view, config.koleo.distributed) for view in global_cls.chunk(NUM_GLOBAL_CROPS)]
            terms["koleo"] = sum(per_view)

        weights = {name: getattr(config, name.split("_")[0]).loss_weight for name in terms}
        loss = sum(weights[name] * term for name, term in terms.items())
        output = PretrainingOutput(loss, {name: term.detach() for name, term in terms.items()})
        if diagnose:
            output.diagnostics = diagnose_batch(global_cls, teacher_cls, targets)
        return output

    def _positions(self, batch: SSLBatch) -> tuple[Tensor, Tensor]:
        """Where the tokens that the objective looks at lie in the packed tokens.

        Returns:
            CLS of the global crops, then their masked patches, `[2B + M]`; CLS of the local crops, `[n B]`.
        """
        config = self.student["backbone"].config
        device = batch.masks.device

        def length(crops: Tensor) -> int:
            rows, columns = config.grid_of(*crops.shape[-2:])
            return config.num_prefix_tokens + rows * columns

        num_global, num_patches = batch.masks.shape
        cls = torch.arange(num_global, device=device) * length(batch.global_crops)
        crop, patch = batch.mask_indices // num_patches, batch.mask_indices % num_patches
        patches = crop * length(batch.global_crops) + config.num_prefix_tokens + patch
        local = torch.arange(len(batch.local_crops), device=device) * length(batch.local_crops)
        return torch.cat((cls, patches)), local + num_global * length(batch.global_crops)

    def _targets(self, cls: Tensor, patches: Tensor, teacher_temp: float) -> dict[str, Assignments]:
        """Assignments of the teacher's CLS `[2B, D]` and masked patches `[M, D]` to prototypes, by term."""
        targets = {}
        if self.config.dino.loss_weight:
            targets["dino"] = self._assign("dino", self.teacher["dino_head"](cls, Logits), teacher_temp)
        if self.config.ibot.loss_weight:
            targets["ibot"] = self._assign("ibot", self.teacher[self._ibot_head_name](patches, Logits), teacher_temp)
        return targets

    def _assign(self, term: str, logits: Logits, teacher_temp: float) -> Assignments:
        with torch.autocast(logits.device.type, enabled=False):
            if term in self.centering:
                return self.centering[term](logits, teacher_temp)
            return sinkhorn_knopp(logits, teacher_temp)

    @torch.no_grad()
    def teacher_features(self, pixel_values: Tensor) -> Tensor:
        """CLS features `[B, D]` of the teacher for images `[B, C, H, W]`. Collective where parameters are sharded."""
        return self.teacher["backbone"](pixel_values).pooler_output

    @torch.no_grad()
    def copy_student_to_teacher(self) -> None:
        """Makes the teacher equal to the student."""
        for name, network in self.student.items():
            self.teacher[name].load_state_dict(network.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """One step of the exponential moving average, over local shards: `teacher = m teacher + (1 - m) student`."""
        teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
        torch._foreach_mul_(teacher, momentum)
        torch._foreach_add_(teacher, student, alpha=1 - momentum)
