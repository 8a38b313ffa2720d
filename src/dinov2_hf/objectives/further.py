"""Further terms of an objective, registered from outside the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..backbones import Tokens
from ..config import TERMS, TermConfig
from ..data import SSLBatch


@dataclass
class TermInput:
    """What a further term sees of an update."""

    batch: SSLBatch
    values: Any
    """Scheduled values of this step, as attributes."""
    student: Tokens
    """Of the global crops: CLS `[2B, D]` and all patches `[2B N, D]`, as the student sees them, masked where it is."""
    teacher: Tokens
    """Of the same crops, from the moving average, without masks and without gradient."""


class FurtherTerm(nn.Module):
    """Base of the terms that are registered from outside.

    `forward` takes a `TermInput` and returns a scalar, before its weight. Buffers and frozen networks of the module are
    part of the checkpoints. Trainable parameters are refused when the run starts: they belong to no student.

    Args:
        config: the section `terms.NAME`.
        objective: whose networks are built already.
    """

    title = ""
    """What it measures, for plots, tables and model cards."""

    def __init__(self, config: TermConfig, objective: nn.Module) -> None:
        super().__init__()
        self.config = config

    def forward(self, seen: TermInput) -> Tensor:
        raise NotImplementedError


FURTHER_TERMS: dict[str, type[FurtherTerm]] = {}
"""By the name of the section in `terms`."""


def register_term(name: str, config: type[TermConfig] = TermConfig) -> Callable[[type[FurtherTerm]], type[FurtherTerm]]:
    """Registers a term that runs switch on with `terms.NAME.weight`.

    Args:
        name: of the term, `loss/NAME` in the metrics.
        config: derives from `TermConfig`: the keys of the section `terms.NAME`.

    Raises:
        TypeError: the class lacks a part of the contract, which the message names.
    """

    def register(kind: type[FurtherTerm]) -> type[FurtherTerm]:
        if not (inspect.isclass(kind) and issubclass(kind, FurtherTerm)):
            raise TypeError(f"the term {name!r} must derive from FurtherTerm, not {kind!r}")
        if kind.forward is FurtherTerm.forward or not kind.title:
            lacking = "title" if kind.forward is not FurtherTerm.forward else "forward"
            raise TypeError(f"the term {name!r} ({kind.__name__}) does not define {lacking}")
        if not (inspect.isclass(config) and issubclass(config, TermConfig)):
            raise TypeError(f"the configuration of the term {name!r} must derive from TermConfig")
        FURTHER_TERMS[name], TERMS[name] = kind, config
        return kind

    return register
