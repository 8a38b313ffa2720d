"""The DINOv2 objective over a student and its teacher (Oquab et al., 2023, section 4).

Axes: `B` images, `V` views, `N` patches, `T` tokens, `D` width, `K` prototypes, `M` masked patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import HeadConfig, PretrainConfig
from ..losses import SoftmaxCentering, dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp
from ..models import DINOHead, Dinov2Config, Dinov2Model
from .batch import SSLBatch

NUM_GLOBAL_CROPS = 2


@dataclass
class PretrainingOutput:
    """The objective of a batch and its terms, scalars in float32."""

    loss: Tensor
    """What is minimised: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """`dino_global`, `dino_local`, `ibot`, `koleo`: those that are switched on, before their weights; detached."""


class DINOv2Pretraining(nn.Module):
    """Student, teacher and objective in one module, as accelerate prepares one model with its optimiser.

    `student` and `teacher` hold a `backbone`, a `dino_head` and, if iBOT has a head of its own, an `ibot_head`. The
    teacher starts as a copy of the student, in float32 like it (EMA increments vanish in half precision), takes no
    gradient, and never drops or masks anything.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.student = nn.ModuleDict(self._build_networks(config.model.drop_path_rate))
        self.teacher = nn.ModuleDict(self._build_networks(drop_path_rate=0.0))
        if config.model.gradient_checkpointing:
            self.student["backbone"].gradient_checkpointing_enable({"use_reentrant": False})
        self.copy_student_to_teacher()
        self.teacher.requires_grad_(False)

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

    def _build_networks(self, drop_path_rate: float) -> dict[str, nn.Module]:
        config = self.config
        architecture = config.model.architecture() | {
            "drop_path_rate": drop_path_rate,
            "image_size": config.crops.global_size,
        }
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

    def forward(self, batch: SSLBatch, teacher_temp: float) -> PretrainingOutput:
        """The objective of a batch whose crops are normalised floats. Collective: call on all ranks.

        Args:
            batch: crops, masks and mask indices, see `SSLBatch`.
            teacher_temp: temperature of the teacher's targets at this step.
        """
        dino_targets, ibot_targets = self._teacher_targets(batch, teacher_temp)
        views = NUM_GLOBAL_CROPS
        student_temp = self.config.teacher.student_temp

        crops, masks = [batch.global_crops], [batch.masks]
        if batch.local_crops.shape[0]:
            crops, masks = crops + [batch.local_crops], masks + [None]
        outputs = self.student["backbone"].forward_packed(crops, masks)
        global_cls = outputs[0][:, 0]
        terms: dict[str, Tensor] = {}

        if self.config.dino.loss_weight:
            cls = torch.cat([tokens[:, 0] for tokens in outputs])
            logits = self.student["dino_head"](cls).unflatten(0, (-1, batch.num_images))  # [V, B, K]
            num_local = logits.shape[0] - views
            num_pairs = views * (views - 1) + views * num_local
            swapped = dino_loss(logits[:1], dino_targets[1:], student_temp)
            swapped = swapped + dino_loss(logits[1:views], dino_targets[:1], student_temp)
            terms["dino_global"] = swapped / num_pairs
            if num_local:
                terms["dino_local"] = dino_loss(logits[views:], dino_targets, student_temp) / num_pairs
        if self.config.ibot.loss_weight:
            patches = self._masked_patches(outputs[0], batch)
            logits = self.student[self._ibot_head_name](patches)
            terms["ibot"] = ibot_loss(
                logits, ibot_targets, batch.mask_weights, batch.global_crops.shape[0], student_temp
            )
        if self.config.koleo.loss_weight:
            terms["koleo"] = sum(koleo_loss(view) for view in global_cls.chunk(views))

        weights = {name: getattr(self.config, name.split("_")[0]).loss_weight for name in terms}
        loss = sum(weights[name] * term for name, term in terms.items())
        return PretrainingOutput(loss, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def _teacher_targets(self, batch: SSLBatch, teacher_temp: float) -> tuple[Tensor | None, Tensor | None]:
        """Targets of CLS `[V, B, K]` and of the masked patches `[M, K]`, None where the term is off."""
        tokens = self.teacher["backbone"](batch.global_crops).last_hidden_state
        dino_targets = ibot_targets = None
        if self.config.dino.loss_weight:
            targets = self._assign("dino", self.teacher["dino_head"](tokens[:, 0]), teacher_temp)
            dino_targets = targets.unflatten(0, (NUM_GLOBAL_CROPS, -1))
        if self.config.ibot.loss_weight:
            logits = self.teacher[self._ibot_head_name](self._masked_patches(tokens, batch))
            ibot_targets = self._assign("ibot", logits, teacher_temp)
        return dino_targets, ibot_targets

    def _assign(self, term: str, logits: Tensor, teacher_temp: float) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            if term in self.centering:
                return self.centering[term](logits, teacher_temp)
            return sinkhorn_knopp(logits, teacher_temp)

    def _masked_patches(self, tokens: Tensor, batch: SSLBatch) -> Tensor:
        """The masked patches `[M, D]` of tokens `[2B, T, D]`."""
        prefix = self.student["backbone"].config.num_prefix_tokens
        return tokens[:, prefix:].flatten(0, 1).index_select(0, batch.mask_indices)

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
