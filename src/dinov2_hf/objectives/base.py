"""What every objective trains: students, each with the moving average that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones import Features
from ..config import HeadConfig, PretrainConfig
from .heads import DINOHead


class Students(nn.Module):
    """Base of the objectives. Accelerate prepares one model with its optimiser, so all that is sharded is in it.

    `students` and `averages` are the trained networks and their exponential moving averages, by the name of the student
    (`""` where there is one alone): each a `backbone` and what the objective puts on it. The averages are in float32
    like the students (increments vanish in half precision), take no gradient, and never drop anything.
    """

    students: Mapping[str, nn.ModuleDict]
    averages: Mapping[str, nn.ModuleDict]

    def train(self, mode: bool = True) -> Students:
        super().train(mode)
        for average in self.averages.values():
            average.eval()
        return self

    @torch.no_grad()
    def average_layers(self, pixel_values: Tensor, count: int = 1, student: str = "") -> list[Features]:
        """Features of the last `count` blocks of a student's average, each after the final norm.

        Collective where it is sharded.
        """
        return self.averages[student]["backbone"].features(pixel_values, count)

    @torch.no_grad()
    def copy_students_to_averages(self) -> None:
        """Makes the averages equal to the students."""
        for name, student in self.students.items():
            for part, network in student.items():
                self.averages[name][part].load_state_dict(network.state_dict())

    @torch.no_grad()
    def update_averages(self, momentum: float) -> None:
        """One step of the moving averages, over local shards: `average = m average + (1 - m) student`."""
        for name, student in self.students.items():
            averaged, trained = list(self.averages[name].parameters()), list(student.parameters())
            torch._foreach_mul_(averaged, momentum)
            torch._foreach_add_(averaged, trained, alpha=1 - momentum)

    def place_teacher(self, device: torch.device, dtype: torch.dtype, sharded: bool) -> None:
        """Moves a frozen teacher, which is no part of this module, to where the students are; here there is none."""

    def compile_layers(self, *networks: nn.ModuleDict) -> None:
        """Compiles each block of the backbones by itself."""
        for network in networks:
            for block in network["backbone"].blocks.values():
                block.compile()


def build_heads(config: PretrainConfig, width: int) -> dict[str, DINOHead]:
    """The projection heads that the objective needs, on a backbone of `width` channels, with fresh weights."""

    def head(settings: HeadConfig) -> DINOHead:
        return DINOHead(
            width,
            settings.num_prototypes,
            hidden_dim=settings.hidden_dim,
            bottleneck_dim=settings.bottleneck_dim,
            num_layers=settings.num_layers,
        )

    heads = {}
    if config.dino.loss_weight or (config.ibot.loss_weight and not config.ibot.separate_head):
        heads["dino_head"] = head(config.dino)
    if config.ibot.loss_weight and config.ibot.separate_head:
        heads["ibot_head"] = head(config.ibot)
    return heads
