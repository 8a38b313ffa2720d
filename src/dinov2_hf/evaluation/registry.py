"""Evaluators by name: what `dinov2-hf evaluate NAME` and `evaluations.KEY.protocol=NAME` run.

To add one, write a generator of `Result`s and its configuration, and decorate it:

    @dataclass
    class MeanNormEvaluation(EvaluationConfig):
        \"""Mean norm of CLS.\"""

    @register_evaluator("mean_norm", config=MeanNormEvaluation, title="mean norm of CLS")
    def evaluate_mean_norm(evaluation: Evaluation) -> Iterator[Result]:
        images = evaluation.labeled(evaluation.config.test, "test")
        cls = evaluation.features(images).parts["cls"][:, -1]
        yield Result("mean_norm", cls.norm(dim=1).mean().item(), "mean norm of CLS")

It may lie in any module that is imported before the command or the run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

from ..config.checks import IMPORT_FIRST
from ..config.evaluations import EvaluationConfig
from ..data.names import place_of
from .base import Evaluation, Result

Evaluate = Callable[[Evaluation], Iterator[Result]]
Function = TypeVar("Function", bound=Evaluate)

_registered: dict[str, Evaluator] = {}


@dataclass(frozen=True)
class Evaluator:
    """A way to evaluate: what can be set, and what does it."""

    name: str
    config: type[EvaluationConfig]
    evaluate: Evaluate
    """Yields each result as it is found. Collective: called on all ranks."""
    title: str
    """What `dinov2-hf evaluate list` says of it."""
    source: str = ""
    """The paper's section."""
    trains: bool = False
    """Whether it changes the weights of the backbone, which then have to come in float32."""
    task: str = "image-classification"
    """The Hub's word for what it does, for model cards."""
    needs: tuple[str, ...] = ()
    """Modules of the extra `evaluate` that it imports."""

    def check_installed(self) -> None:
        """Refuses to start what would end after its features are computed.

        Raises:
            ImportError: a module that it needs is not installed; names the extra.
        """
        if missing := [name for name in self.needs if find_spec(name) is None]:
            names = ", ".join(missing)
            raise ImportError(f'the evaluator {self.name} needs {names}: pip install "dinov2_hf[evaluate]"')


def register_evaluator(
    name: str,
    *,
    config: type[EvaluationConfig],
    title: str,
    source: str = "",
    trains: bool = False,
    task: str = "image-classification",
    needs: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Makes the decorated function an evaluator; arguments as of `Evaluator`.

    Raises:
        TypeError: a configuration or a function that an evaluation cannot use.
        ValueError: a name of other characters, or one that another function has; no title.
    """

    def register(function: Function) -> Function:
        _check(name, config, title, function)
        _registered[name] = Evaluator(name, config, function, title, source, trains, task, needs)
        return function

    return register


def evaluators() -> dict[str, Evaluator]:
    """All registered evaluators by name, in the order of their names."""
    return dict(sorted(_registered.items()))


def find_evaluator(name: str, key: str = "") -> Evaluator:
    """The evaluator of this name; messages call it `key=name` where there is a key.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in _registered:
        given = f"{key}={name!r}" if key else repr(name)
        raise ValueError(f"{given} is not an evaluator; choose one of {', '.join(evaluators())}; {IMPORT_FIRST}")
    return _registered[name]


def _check(name: str, config: type, title: str, function: Callable) -> None:
    where = f"evaluator {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{where} has a name of other characters than a to z, digits and _; rename it")
    before = _registered.get(name)
    if before is not None and place_of(before.evaluate) != place_of(function):
        raise ValueError(f"{where} is already registered by {place_of(before.evaluate)}; use another name")
    if not title:
        raise ValueError(f"{where} has no title; say in a few words what it measures")
    if not (inspect.isclass(config) and issubclass(config, EvaluationConfig)):
        raise TypeError(f"{where} has config={config!r}; give a dataclass that inherits from EvaluationConfig")
    if "__dataclass_params__" not in vars(config):  # what it adds would not be read
        raise TypeError(f"{where}: {config.__name__} is not a dataclass; decorate it with @dataclass")
    try:
        config()
    except TypeError:
        raise TypeError(f"{where}: {config.__name__} has fields without a default; give each a default") from None
    if not inspect.isgeneratorfunction(function):
        raise TypeError(f"{where}: {place_of(function)} is not a generator function; yield each Result")
    try:
        inspect.signature(function).bind(object())
    except TypeError:
        raise TypeError(
            f"{where}: {place_of(function)} needs more arguments than the Evaluation; remove them"
        ) from None
