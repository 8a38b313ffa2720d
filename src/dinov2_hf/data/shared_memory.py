"""Shared memory, in which data workers hand over their batches: what they need, and whether it is there."""

from __future__ import annotations

import os
from pathlib import Path

from ..config import RunConfig

PREFETCH = 2
"""Batches that each worker prepares ahead."""
_FOLDER = Path("/dev/shm")


def batch_bytes(config: RunConfig) -> int:
    """Bytes of the crops of a batch, as a worker hands them over."""
    crops, channels = config.crops, config.model.num_channels
    pixels = 2 * crops.global_size**2 + crops.num_local * crops.local_size**2
    return config.train.batch_size * pixels * channels * (1 if channels == 3 else 4)


def free_bytes() -> int | None:
    """Free shared memory; None where the system has no folder for it (macOS, Windows)."""
    if not _FOLDER.is_dir():
        return None
    stats = os.statvfs(_FOLDER)
    return stats.f_bavail * stats.f_frsize


def check_shared_memory(size: int, num_workers: int, num_batches: int, key: str) -> None:
    """Refuses more workers than shared memory has room for: they would end with a bus error in the middle of a run.

    Args:
        size: bytes of a batch.
        num_workers: of this process; each process on this machine has as many.
        num_batches: all that will be read.
        key: what messages call the number of workers.

    Raises:
        ValueError: the batches that the workers prepare ahead do not fit.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = processes * size * min(num_workers * PREFETCH, num_batches)
    free = free_bytes()
    if not num_workers or free is None or needed <= free:
        return
    fits = free // (processes * size * PREFETCH)
    raise ValueError(
        f"{key}={num_workers} needs {needed / 1e9:.2f} GB of shared memory ({PREFETCH} batches of {size / 1e6:.0f} MB "
        f"for each worker{f' of {processes} processes' if processes > 1 else ''}), but {_FOLDER} has "
        f"{free / 1e9:.2f} GB free; start the container with --shm-size={max(-(-needed * 5 // 4 // 2**30), 1)}g "
        f"(Docker's default is 64 MB), or set {key}={fits}"
    )
