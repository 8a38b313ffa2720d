"""Write an objective: SimCLR, in which the two views of an image find each other among all views of the batch.

    python examples/own_objective.py train.epochs=2

The loop, checkpoints, metrics and exports are those of every run. docs/extend/objective.md has the contract of an
objective. About a minute on two CPU cores.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dinov2_hf import fit
from dinov2_hf.backbones import CropGroup
from dinov2_hf.config import RunConfig, load_config
from dinov2_hf.objectives import Objective, ObjectiveOutput, Scheduled, Term, register_objective

CLOTHING = Path(__file__).parent / "data/clothing"
SETTINGS = """objective=simclr model.preset=tiny model.hidden_size=96 model.num_attention_heads=3 model.patch_size=8
model.layerscale_value=0.1 model.drop_path_rate=0 crops.global_size=32 crops.num_local=0 crops.global_scale=[0.4,1]
optim.warmup_epochs=0.1 optim.base_lr=0.004 train.batch_size=64 train.epochs=1 train.epoch_length=48 data.num_workers=2
train.log_every=8""".split()


@dataclass
class ContrastConfig:
    temperature: float = 0.2
    """Of the cosines."""
    projection_dim: int = 64
    """Width in which views are compared."""


@dataclass
class SimCLRConfig(RunConfig):
    objective: str = "simclr"
    contrast: ContrastConfig = field(default_factory=ContrastConfig)


@register_objective("simclr", config=SimCLRConfig)
class SimCLR(Objective):
    def __init__(self, config, teachers=None):
        super().__init__(config)
        self.build_students()

    @classmethod
    def terms_of(cls, config):
        return {"contrast": Term(1.0, "cross-entropy of finding the other view of an image")}

    @classmethod
    def schedules_of(cls, config):
        return {"teacher_momentum": Scheduled(0.99, 1.0)}  # the average is what is evaluated and exported

    def build_networks(self, student, drop_path_rate):
        backbone, width = self.build_backbone(student, drop_path_rate), self.config.contrast.projection_dim
        projector = nn.Sequential(nn.Linear(backbone.width, 256), nn.GELU(), nn.Linear(256, width))
        return {"backbone": backbone, "projector": projector}

    def forward(self, batch, values, diagnose=False):
        (tokens,) = self.student["backbone"].tokens([CropGroup(batch.global_crops)])  # CLS [2B, D]
        views = nn.functional.normalize(self.student["projector"](tokens.cls).float(), dim=1)
        logits = views @ views.T / self.config.contrast.temperature
        logits = logits.fill_diagonal_(-torch.inf)  # a view is not its own partner
        partner = torch.arange(len(views), device=views.device).roll(len(views) // 2)
        loss = nn.functional.cross_entropy(logits, partner)
        return ObjectiveOutput(loss, {"contrast": loss.detach()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=CLOTHING, help="folder or set of images (default: the bundled photographs)")
    parser.add_argument("--output", default="runs/own_objective", help="folder of the run")
    parser.add_argument("keys", nargs="*", metavar="key=value")
    args = parser.parse_args()

    paths = [f"data.train.path={args.data}", f"train.output_dir={args.output}"]
    run = fit(SimCLR(load_config(None, [*SETTINGS, *paths, *args.keys])), args.data)
    print(run.metrics()[["loss/contrast", "grad_norm/backbone", "lr"]].round(5))
    print(f"model in {run.export()}")


if __name__ == "__main__":
    main()
