"""Runs and batches that sections measure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cuda_model import CASES
from PIL import Image
from step import VALUES, make_batch

from dinov2_hf.config import DINOv2RunConfig, load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import DINOv2
from dinov2_hf.train import TrainingStep, build_accelerator

from .context import Context
from .machine import device, on_cuda

TINY = (
    *("model.preset=tiny", "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"),
    *("model.patch_size=14", "crops.global_size=42", "crops.local_size=28", "crops.num_local=2"),
    *("dino.num_prototypes=64", "dino.hidden_dim=32", "dino.bottleneck_dim=16"),
    *("ibot.num_prototypes=64", "ibot.hidden_dim=32", "ibot.bottleneck_dim=16"),
)
"""Whatever the case: a run that a CPU updates in a tenth of a second."""


def precision() -> str:
    return "bf16" if on_cuda() else "fp32"


def case_config(context: Context, case: str, *overrides: str, batch: int | None = None) -> DINOv2RunConfig:
    """A case of `cuda_model.py`, so that what is measured stands beside what is modelled."""
    preset, size, prototypes, further = CASES[case]
    keys = [f"model.preset={preset}", f"dino.num_prototypes={prototypes}", f"ibot.num_prototypes={prototypes}"]
    keys += ["ibot.separate_head=true", *further, f"train.batch_size={context.size(batch or size, 4)}"]
    return run_config(context, f"train.precision={precision()}", *keys, *context.size((), TINY), *overrides)


def run_config(context: Context, *overrides: str) -> DINOv2RunConfig:
    fixed = ["data.train.path=noise", f"train.output_dir={context.work / 'noise'}"]
    return load_config(None, [*fixed, "train.gradient_accumulation_steps=1", *overrides])


@dataclass
class Update:
    """A model with its optimiser, and a batch of noise on the device: call it for one update."""

    model: DINOv2
    step: TrainingStep
    batch: SSLBatch
    made: int = 0

    def __call__(self, batch: SSLBatch | None = None, diagnose: bool = False) -> dict[str, torch.Tensor]:
        self.made += 1
        return self.step(lambda: batch or self.batch, VALUES, self.made, diagnose=diagnose)


def prepare(config: DINOv2RunConfig) -> Accelerator:
    """The accelerator of a run, whatever the precision of the one before it in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = build_accelerator(config.train)
    if not on_cuda():
        torch.set_num_threads(1)  # a dry run is too small for more
    return accelerator


def build(config: DINOv2RunConfig) -> Update:
    accelerator = prepare(config)
    torch.manual_seed(0)
    with torch.device(device()):  # a ViT-g is drawn there in a second
        model = DINOv2(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batch = make_batch(config).to(device())
    return Update(model, TrainingStep(model, config, accelerator), batch)


def photographs(context: Context, name: str, count: int, width: int, height: int) -> Path:
    """A folder of JPEG files of smooth noise, made once."""
    folder = context.work / name
    if folder.is_dir():
        return folder
    part = context.work / f"{name}.part"
    part.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 255, (max(height // 12, 1), max(width // 12, 1), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + rng.integers(-12, 12, (height, width, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(part / f"{index:05}.jpg", quality=88)
    os.rename(part, folder)
    return folder
