"""A further term: the cosines among the patches of an image stay those that a frozen copy sees."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from dinov2_hf.config import TermConfig
from dinov2_hf.objectives import FurtherTerm, register_term


@dataclass
class GramConfig(TermConfig):
    """The section `terms.gram`."""

    normalize: bool = True
    """Compare cosines; else products."""


@register_term("gram", config=GramConfig)
class Gram(FurtherTerm):
    title = "products among patches against those of a frozen copy"

    def __init__(self, config, objective):
        super().__init__(config, objective)
        self.anchor = copy.deepcopy(objective.networks[""].average["backbone"])

    def forward(self, seen):
        crops = seen.batch.global_crops
        with torch.no_grad():
            wanted = self._gram(self.anchor.features(crops)[0].patches.flatten(2).transpose(1, 2))
        found = self._gram(seen.student.patches.unflatten(0, (len(crops), -1)))
        return (found - wanted).square().mean()

    def _gram(self, patches):
        patches = patches.float()
        if self.config.normalize:
            patches = nn.functional.normalize(patches, dim=-1)
        return patches @ patches.transpose(1, 2)
