"""The device, and times on it."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable

import torch

from .context import rounded


def device() -> torch.device:
    return torch.device("cuda:0" if on_cuda() else "cpu")


def on_cuda() -> bool:
    return torch.cuda.is_available()


def synchronize() -> None:
    if on_cuda():
        torch.cuda.synchronize()


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(work: Callable[[], object], repeat: int, warmup: int) -> dict[str, float]:
    """Median milliseconds: `ms` until the device is done, `host_ms` until the host has launched everything."""
    for _ in range(warmup):
        work()
    synchronize()
    whole, host = [], []
    for _ in range(repeat):
        if on_cuda():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
        began = time.perf_counter()
        work()
        host.append(1e3 * (time.perf_counter() - began))
        if on_cuda():
            end.record()
            end.synchronize()
            whole.append(start.elapsed_time(end))
        else:
            whole.append(host[-1])
    return {"ms": rounded(statistics.median(whole), 4), "host_ms": rounded(statistics.median(host), 4)}


def reset_memory() -> None:
    """Frees what is not used any more, and starts a new peak."""
    gc.collect()
    if on_cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """Largest memory of tensors since `reset_memory`, in GB; None on CPUs."""
    return rounded(torch.cuda.max_memory_allocated() / 1e9) if on_cuda() else None
