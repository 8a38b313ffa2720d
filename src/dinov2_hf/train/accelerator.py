"""accelerate, configured in one place: processes, precision, sharding."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..backbones import Backbone
from ..config import TrainConfig
from ..objectives import Objective, ProjectionHead, backbone_of

_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_precision() -> str:
    """`bf16` where the hardware multiplies bfloat16 matrices itself, else `fp32`."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if torch.cuda.is_available() and not on_cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.backends.mps.is_available() and not on_cpu:
        return "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run: precision from the config, processes and sharding as it was launched.

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
    if accelerator.device.type == "cpu":
        _prepare_cpu()
    _configure_sharding(accelerator)
    return accelerator


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """What matrices are multiplied in."""
    return _DTYPES[accelerator.mixed_precision]


def describe_compute(accelerator: Accelerator, backbones: Sequence[Backbone], compiled: bool) -> str:
    """One line on what decides speed and rounding: device, precision, attention kernels, TF32, compilation."""
    device, cuda = accelerator.device.type, torch.backends.cuda
    kinds = {getattr(getattr(backbone, "config", None), "_attn_implementation", None) for backbone in backbones}
    attention = ", ".join(sorted(kind for kind in kinds if kind is not None)) or "none"
    if device == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
        if attention == "sdpa":
            kernels = {
                "flash": cuda.flash_sdp_enabled(),
                "cudnn": cuda.cudnn_sdp_enabled(),
                "efficient": cuda.mem_efficient_sdp_enabled(),
                "math": cuda.math_sdp_enabled(),
            }
            attention += f" ({', '.join(name for name, enabled in kernels.items() if enabled)})"
    precision = accelerator.mixed_precision.replace("no", "fp32")
    tf32 = "on" if cuda.matmul.fp32_precision == "tf32" else "off"
    return (
        f"device {device}, precision {precision}, attention {attention}, TF32 {tf32}, "
        f"compilation {'on' if compiled else 'off'}"
    )


def _configure_sharding(accelerator: Accelerator) -> None:
    """What accelerate leaves open for FSDP2, or sets otherwise than this training needs it.

    Raises:
        ValueError: FSDP1.
    """
    state = accelerator.state
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    if wanted and accelerator.device.type == "cpu" and accelerator.num_processes > 1:
        # accelerate looks at FSDP on accelerators only; the same code runs on CPUs, over gloo
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
    if state.distributed_type != DistributedType.FSDP:
        return
    PartialState().distributed_type = DistributedType.FSDP  # every new view of the state is filled from this one
    plugin = state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP version 1 is not supported; set fsdp_version: 2 (FSDP_VERSION=2)")
    # Gathered and computed in the compute dtype, reduced in float32. Inputs are left alone: autocast converts what
    # matrix products need, and the residual stream stays in float32 as it does on one process.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype(accelerator), reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def shard_by_blocks(accelerator: Accelerator, model: Objective[Any]) -> None:
    """Makes FSDP2 shard each block of the backbones and each head by itself, whatever their classes are."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin and plugin.transformer_cls_names_to_wrap:
        blocks = [
            block
            for networks in model.networks.values()
            for network in networks
            for block in backbone_of(network).blocks.values()
        ]
        heads = [module for module in model.modules() if isinstance(module, ProjectionHead)]
        plugin.transformer_cls_names_to_wrap = sorted({type(module).__name__ for module in (*blocks, *heads)})


def _prepare_cpu() -> None:
    """Threads and memory for training on CPUs."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # `accelerate launch` leaves every process a single thread
    torch.set_num_threads(max(_available_cores() // processes, 1))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep large blocks that were freed; elsewhere does nothing.

    By default they go back to the system at once, and a step, which wants the same ones again, spends two fifths of its
    time on page faults (docs/performance.md).
    """
    _set_malloc(mmap_max=0, trim_threshold=-1)


def return_freed_memory() -> None:
    """Makes glibc give large blocks that are freed back to the system again, as it does by default."""
    _set_malloc(mmap_max=65536, trim_threshold=128 * 1024)


def _set_malloc(mmap_max: int, trim_threshold: int) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, mmap_max)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
