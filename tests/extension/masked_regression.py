"""An objective that is not in the family: a predictor regresses the teacher's features of masked patches."""

from dataclasses import dataclass, field

import torch
from torch import nn

from dinov2_hf.backbones import CropGroup
from dinov2_hf.config import RunConfig
from dinov2_hf.objectives import Objective, ObjectiveOutput, Scheduled, Term, register_objective


@dataclass
class RegressionConfig:
    hidden_dim: int = 32
    """Width of the predictor."""
    mask_ratio: float = 0.5
    """Share of the patches that are masked in every global crop."""


@dataclass
class MaskedRegressionConfig(RunConfig):
    objective: str = "masked_regression"
    regression: RegressionConfig = field(default_factory=RegressionConfig)

    @property
    def masks(self):
        return 1.0, (self.regression.mask_ratio, self.regression.mask_ratio)


@register_objective("masked_regression", config=MaskedRegressionConfig)
class MaskedRegression(Objective):
    def __init__(self, config, teachers=None):
        super().__init__(config)
        self.build_students()

    @classmethod
    def terms_of(cls, config):
        return {"regression": Term(1.0, "smooth L1 distance of predicted and seen patches")}

    @classmethod
    def schedules_of(cls, config):
        return {"teacher_momentum": Scheduled(0.9, 1.0)}

    def build_networks(self, student, drop_path_rate):
        hidden, backbone = self.config.regression.hidden_dim, self.build_backbone(student, drop_path_rate)
        predictor = nn.Sequential(nn.Linear(backbone.width, hidden), nn.GELU(), nn.Linear(hidden, backbone.width))
        return {"backbone": backbone, "predictor": predictor}

    def forward(self, batch, values, diagnose=False):
        crops, wanted = batch.global_crops, batch.mask_indices
        with torch.no_grad():
            (seen,) = self.average["backbone"].tokens([CropGroup(crops, wanted=wanted)])
            targets = nn.functional.layer_norm(seen.patches.float(), seen.patches.shape[-1:])
        (tokens,) = self.student["backbone"].tokens([CropGroup(crops, batch.masks, wanted)])
        predicted = self.student["predictor"](tokens.patches).float()
        loss = nn.functional.smooth_l1_loss(predicted, targets)
        return ObjectiveOutput(loss, {"regression": loss.detach()})
