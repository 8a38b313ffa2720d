"""The state of a process that training and evaluation change, and that a caller finds again as it was."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState

from ..train.accelerator import return_freed_memory


def usable_device(name: str | torch.device | None) -> torch.device:
    """Returns a device that was tried; None: the accelerator of the machine where there is one, else the CPU.

    Raises:
        ValueError: the device cannot be used.
    """
    try:
        if name is None:
            found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            return found or torch.device("cpu")
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from None


@contextmanager
def computing_on(name: str | torch.device | None) -> Iterator[torch.device]:
    """Yields a device that was tried, which an `Accelerator` that is made in the block uses too.

    A connection to the other processes of a launch that is made in the block stays until the process ends, as a second
    one cannot be made reliably, and is closed then: threads of an open one abort a process that has succeeded.

    Args:
        name: None: that of `usable_device`; accelerate then chooses by its own settings. On several processes a kind of
            device without an index: each process takes its own.

    Raises:
        ValueError: the device cannot be used.
    """
    device = usable_device(name)
    environment = _environment_of(device) if name is not None else {}
    connected = _connected()
    before = {key: os.environ.pop(key, None) for key in environment}
    os.environ.update({key: value for key, value in environment.items() if value is not None})
    try:
        yield device
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        if _connected() and not connected:
            atexit.register(_disconnect)


@contextmanager
def unchanged_process(device: str | torch.device | None = None) -> Iterator[None]:
    """Puts back what the block changes in the process.

    These are the state of accelerate, unless the caller made an `Accelerator` before; the generators of torch, its
    number of threads, and how freed memory is kept.

    Args:
        device: on which an accelerator that is made in the block computes; None: as accelerate chooses.

    Raises:
        ValueError: the device cannot be used.
    """
    fresh = not PartialState._shared_state
    threads, cuda = torch.get_num_threads(), torch.cuda.is_available()
    generators = torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []
    try:
        with computing_on(device):
            yield
    finally:
        torch.set_rng_state(generators[0])
        if cuda:
            torch.cuda.set_rng_state_all(generators[1])
        torch.set_num_threads(threads)
        if fresh:
            return_freed_memory()
            AcceleratorState._reset_state(reset_partial_state=True)


def _connected() -> bool:
    """Whether this process has a connection to others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _disconnect() -> None:
    """Closes the connection to the other processes, if it is still there."""
    if _connected():
        torch.distributed.destroy_process_group()


def _environment_of(device: torch.device) -> dict[str, str | None]:
    """What accelerate reads to choose a device; None: unset."""
    if device.type == "cpu":
        return {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": None}
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": str(device)}
    if device.index is not None:
        raise ValueError(f"device={device} is one device for several processes; use {device.type}")
    return {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": None}
