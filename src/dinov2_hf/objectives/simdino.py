"""The objective of SimDINO over a student and its moving average, without prototypes (Wu et al., 2025, section 3).

Axes: `V` crops of an image, `B` images, `D` width, `M` masked patches, `d` width of the projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone, Tokens
from ..config import SimDINORunConfig
from ..data import SSLBatch
from .base import Scheduled, Term, register_objective
from .diagnostics import diagnose_batch, feature_std
from .heads import ProjectionHead
from .pretraining import Pretraining
from .prototypes import describe_masks, image_terms_of, patch_terms_of
from .terms import NUM_GLOBAL_CROPS, coding_rate_loss, crop_distances, patch_distance


@register_objective("simdino")
class SimDINO(Pretraining[SimDINORunConfig]):
    """CLS of every crop close to the teacher's CLS of the global crops, and a coding rate that keeps images apart.

    With masks also masked patches close to the teacher's, on the same head (SimDINOv2). `student` and `teacher` hold a
    `backbone` and a `dino_head`.
    """

    @classmethod
    def own_terms_of(cls, config: SimDINORunConfig) -> dict[str, Term]:
        terms = image_terms_of(config.dino.loss_weight, config.crops.num_local)
        terms |= patch_terms_of(config.ibot.loss_weight)
        if weight := config.coding_rate.loss_weight:
            terms["coding_rate"] = Term(weight, "minus the coding rate of CLS over the batch, times 1/d + 1/n")
        return terms

    @classmethod
    def schedules_of(cls, config: SimDINORunConfig) -> dict[str, Scheduled]:
        return {"teacher_momentum": Scheduled(config.teacher.momentum, config.teacher.final_momentum)}

    @classmethod
    def describe(cls, config: SimDINORunConfig) -> str:
        return f"pretrained without labels ({'SimDINO with masked patches' if config.ibot.loss_weight else 'SimDINO'})"

    @classmethod
    def recipe(cls, config: SimDINORunConfig) -> dict[str, str | None]:
        return {
            **super().recipe(config),
            "Width of the projections": f"{config.dino.bottleneck_dim:,}, without prototypes",
            "Masked patches": describe_masks(config.masks),
        }

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone, dino = self.build_backbone(student, drop_path_rate), self.config.dino
        head = ProjectionHead(backbone.width, dino.hidden_dim, dino.bottleneck_dim, dino.num_layers, dino.batch_norm)
        return {"backbone": backbone, "dino_head": head}

    def targets(self, tokens: Tokens, batch: SSLBatch, values: Any) -> dict[str, Tensor]:
        cls, patches = tokens
        of_cls, of_patches = self.teacher["dino_head"](torch.cat((cls, patches))).split((len(cls), len(patches)))
        return {"dino": of_cls.unflatten(0, (NUM_GLOBAL_CROPS, -1)), "ibot": of_patches}

    def student_terms(
        self, tokens: Tokens, local_cls: Tensor, batch: SSLBatch, targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        config, num_global = self.config, len(tokens.cls)
        cls, patches = torch.cat((tokens.cls, local_cls)), tokens.patches
        of_cls, of_patches = self.student["dino_head"](torch.cat((cls, patches))).split((len(cls), len(patches)))
        crops = of_cls.unflatten(0, (-1, num_global // NUM_GLOBAL_CROPS))
        terms: dict[str, Tensor] = {}
        if config.dino.loss_weight:
            num_local = len(crops) - NUM_GLOBAL_CROPS
            num_pairs = NUM_GLOBAL_CROPS * (NUM_GLOBAL_CROPS - 1 + num_local)
            among_global, with_local = crop_distances(crops, targets["dino"])
            terms["dino_global"] = among_global / num_pairs
            if num_local:
                terms["dino_local"] = with_local / num_pairs
        if config.ibot.loss_weight:
            terms["ibot"] = patch_distance(of_patches, targets["ibot"], batch.mask_weights, num_global)
        if config.coding_rate.loss_weight:
            spread = crops[:NUM_GLOBAL_CROPS]
            if config.coding_rate.features == "mean":
                spread = (spread + targets["dino"]) / 2
            terms["coding_rate"] = coding_rate_loss(spread, config.coding_rate.eps)
        return terms

    def diagnose(
        self,
        seen: Tokens,
        seen_by_teacher: Tokens,
        batch: SSLBatch,
        targets: Mapping[str, Any],
        terms: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        signs = diagnose_batch(seen.cls, seen_by_teacher.cls, {})
        return signs | {"projection_std": feature_std(targets["dino"].flatten(0, 1))}
