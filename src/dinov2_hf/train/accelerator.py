"""accelerate, configured in one place."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from ..config import TrainConfig

_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def native_precision() -> str:
    """`bf16` where the hardware multiplies bfloat16 matrices itself, else `fp32`."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.backends.mps.is_available():
        return "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run: precision from the config, metrics to TensorBoard under `output_dir`.

    Raises:
        ValueError: fp16 without a GPU.
    """
    precision = native_precision() if config.precision == "auto" else config.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("train.precision=fp16 needs a CUDA GPU; use auto, bf16 or fp32")
    accelerator = Accelerator(
        mixed_precision=_MIXED_PRECISION[precision],
        log_with="tensorboard",
        project_dir=config.output_dir,
        step_scheduler_with_optimizer=False,
    )
    if accelerator.device.type == "cpu":  # `accelerate launch` leaves every process a single thread
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(_available_cores() // processes, 1))
    return accelerator


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
