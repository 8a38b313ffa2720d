"""What every objective trains: students, each with the moving average that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones import Dinov2Config, Dinov2Model, check_attention
from ..config import HeadConfig, ModelConfig, PretrainConfig
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
    def average_layers(self, pixel_values: Tensor, count: int = 1, student: str = "") -> list[tuple[Tensor, Tensor]]:
        """CLS `[B, D]` and patches `[B, D, h, w]` of the last `count` blocks of a student's average, after the norm.

        Collective where it is sharded.
        """
        backbone = self.averages[student]["backbone"]
        return [(cls, patches) for patches, cls in backbone.get_intermediate_layers(pixel_values, count)]

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
        """Compiles each transformer layer by itself."""
        for network in networks:
            for layer in network["backbone"].encoder.layer:
                layer.compile()


def build_backbone(model: ModelConfig, image_size: int, drop_path_rate: float) -> Dinov2Model:
    """A backbone with fresh weights.

    Raises:
        ValueError: the package of `model.attn_implementation` is not installed.
    """
    architecture = model.architecture() | {"drop_path_rate": drop_path_rate, "image_size": image_size}
    if architecture["attn_implementation"] == "auto":
        architecture["attn_implementation"] = "sdpa" if torch.accelerator.is_available() else "eager"
    check_attention(architecture["attn_implementation"], "model.attn_implementation")
    return Dinov2Model(Dinov2Config.preset(model.preset, **architecture))


def recompute_layers(backbone: Dinov2Model) -> None:
    """Makes the backward pass compute each layer again, instead of keeping its activations."""
    # its name in transformers 6; releases before 5.23 only have the other
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


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
