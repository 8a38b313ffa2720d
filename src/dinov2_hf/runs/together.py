"""What processes do together: each does its part, and where one fails, all fail with its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and of all processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def on_all(action: Callable[[], T]) -> list[T]:
    """Calls `action` on every process and returns the results of all, in the order of ranks. Collective.

    Raises:
        OSError: on the others, where one failed, with its message; that one raises what it got.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    outcomes = _gather((result, error and (str(error) or type(error).__name__)))
    if error is not None:
        raise error
    failures = [(rank, failure) for rank, (_, failure) in enumerate(outcomes) if failure]
    if failures:
        raise OSError("process {}: {}".format(*failures[0]))
    return [cast(T, outcome) for outcome, _ in outcomes]


def on_main(action: Callable[[], T]) -> T:
    """Calls `action` on the main process and returns its result on all. Collective.

    Raises:
        OSError: on the others, where the main one failed, with its message; that one raises what it got.
    """
    main = rank_and_world()[0] == 0
    return cast(T, on_all(lambda: action() if main else None)[0])


def _gather(item: T) -> list[T]:
    world = rank_and_world()[1]
    if world == 1:
        return [item]
    items: list[Any] = [None] * world
    dist.all_gather_object(items, item)
    return items
