"""Six recorded training steps of the published codes of DINO and iBOT, and a run of ours that makes the same ones."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from dinov2_hf.config import load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import Objective, find_objective
from dinov2_hf.train import TrainingStep, build_accelerator
from dinov2_hf.train.schedules import build_schedules, values_at

DATA = Path(__file__).parent / "data"
_VIT = {
    "cls_token": "embeddings.cls_token",
    "masked_embed": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm": "layernorm",
}


def vit_state(published):
    """The tensors of a published vision transformer under the names of the family `vit`."""
    state = {}
    for name, value in published.items():
        module, _, kind = name.rpartition(".")
        if name in _VIT:
            state[_VIT[name]] = value[None] if name == "masked_embed" else value
        elif ".attn.qkv." in name:
            _, layer, *_ = name.split(".")
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                state[f"encoder.layer.{layer}.attention.attention.{part}.{kind}"] = piece
        elif module.startswith("blocks."):
            _, layer, part = module.split(".", 2)
            state[f"encoder.layer.{layer}.{_VIT[part]}.{kind}"] = value
        else:
            state[f"{_VIT[module]}.{kind}"] = value
    return state


def head_state(published):
    """The tensors of a published head; those of patches are left out where they are shared with CLS."""
    own = any(not torch.equal(value, published[name.replace("layer2", "layer")]) for name, value in published.items())
    return {name: value for name, value in published.items() if own or not name.startswith("last_layer2.")}


@dataclass
class Recording:
    """What was recorded of the published code."""

    name: str
    tensors: dict[str, torch.Tensor] = field(init=False)
    record: dict[str, Any] = field(init=False)

    def __post_init__(self):
        self.tensors = load_file(DATA / f"{self.name}.safetensors")
        self.record = json.loads((DATA / f"{self.name}.json").read_text())

    def under(self, prefix):
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def load(self, networks: nn.ModuleDict, prefix: str, backbone_state=vit_state):
        """Loads networks recorded under `prefix`; a mask embedding that the teacher does not have stays as it is."""
        state = backbone_state(self.under(f"{prefix}.backbone."))
        kept = {name: value for name, value in networks["backbone"].state_dict().items() if "mask_token" in name}
        networks["backbone"].load_state_dict(kept | state)
        networks["dino_head"].load_state_dict(head_state(self.under(f"{prefix}.head.")))

    def batch(self, step: int) -> SSLBatch:
        crops = self.tensors[f"step{step}.global_crops"]
        masks = self.tensors.get(f"step{step}.masks", torch.zeros(len(crops), 16, dtype=torch.bool))
        local = self.tensors.get(f"step{step}.local_crops", torch.empty(0, 3, 16, 16))
        return SSLBatch(crops, local, masks, *SSLBatch.flatten_masks(masks))


@dataclass
class Step:
    """One update of ours."""

    values: Any
    scalars: dict[str, torch.Tensor]
    centers: dict[str, torch.Tensor]
    largest: dict[str, float]
    """The largest element of each parameter's gradient, before clipping."""


@dataclass
class Trajectory:
    """Six updates of ours from the recorded start, on the recorded batches."""

    recording: Recording
    objective: Objective
    steps: list[Step]

    def expected(self, role: str, backbone_state=vit_state) -> nn.ModuleDict:
        """The recorded networks at the end."""
        networks = copy.deepcopy(getattr(self.objective, role))
        self.recording.load(networks, f"final.{role}", backbone_state)
        return networks


def follow(recording: Recording, overrides: list[str], folder: Path, backbone_state=vit_state) -> Trajectory:
    """Makes the recorded updates with the training step of a run that `overrides` configure."""
    given = [
        "data.train.path=/unused",
        f"train.output_dir={folder}",
        "train.batch_size=4",
        "train.epochs=3",
        "train.epoch_length=2",
        "train.precision=fp32",
        "crops.global_size=32",
        "crops.local_size=16",
        "crops.num_local=2",
    ]
    config = load_config(None, given + overrides)
    accelerator = build_accelerator(config.train)
    objective = find_objective(config)(config)
    recording.load(objective.student, "init.student", backbone_state)
    objective.copy_students_to_averages()
    step = TrainingStep(objective, config, accelerator)
    schedules = build_schedules(config, objective.schedules_of(config), config.train.batch_size)
    largest = {}
    for name, parameter in objective.student.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: largest.update({name: gradient.abs().max().item()}))
    steps = []
    for index in range(len(recording.record["steps"])):
        values = values_at(schedules, index)
        scalars = step(lambda index=index: recording.batch(index), values, index)
        centers = {term: center.center.clone() for term, center in objective.centering.items()}
        steps.append(Step(values, scalars, centers, dict(largest)))
    return Trajectory(recording, objective, steps)
