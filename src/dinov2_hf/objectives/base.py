"""What every objective is: networks, terms and values, and the registry of objectives.

An objective is one module, because accelerate prepares one model with its optimiser: all that is sharded is in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..backbones import Backbone, Features, features_of, find_family, recompute_blocks
from ..backbones.batch_norm import batch_norms_of
from ..config import RUNS, RunConfig
from ..config.checks import IMPORT_FIRST
from ..data import SSLBatch
from .teachers import FrozenTeacher

if TYPE_CHECKING:
    from typing_extensions import Self

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Term:
    """A term of the loss, declared once."""

    weight: float
    title: str
    """What it measures, for plots, tables and model cards."""


@dataclass(frozen=True)
class Scheduled:
    """A value that changes over the run: a straight line from `warmup`, then half a cosine from `base` to `final`."""

    base: float
    final: float
    warmup: float = 0.0
    warmup_epochs: float = 0.0
    epochs: float | None = None
    """Length in epochs, after which it keeps `final`; None: that of the run."""
    delay_epochs: float = 0.0
    """Epochs at the start that keep `warmup`."""
    by_epoch: bool = False
    """One value for each epoch, in place of one for each update."""


class Networks(NamedTuple):
    """The networks of a student by name, `backbone` and what the objective puts on it, and their moving averages."""

    student: nn.ModuleDict
    average: nn.ModuleDict


class Teacher(NamedTuple):
    """A frozen teacher that is read from a path."""

    path: str
    """A run, an export, a file or a name on the Hub."""
    build: Callable[[Any], FrozenTeacher]
    """Makes the teacher of what is there, opened (`weights.Weights`)."""


class Places(NamedTuple):
    """Where the networks of a student are in the objective, and in its checkpoints."""

    student: str
    average: str


@dataclass
class ObjectiveOutput:
    """The loss of a batch and its terms, scalars in float32."""

    loss: Tensor
    """What is minimised: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """The terms before their weights, detached; those of a further student as `<student>.<term>`."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Signs of health of the global batch, where they were asked for; see `objectives.diagnostics`."""


class Objective(nn.Module, Generic[Config]):
    """Base of the objectives; the type argument is the configuration of its runs.

    A subclass defines `terms_of`, `build_networks` and `forward`, calls `build_students()` in its constructor, and is
    registered with `register_objective`. The averages are in float32 like the students (increments vanish in half
    precision), take no gradient, and never drop anything. Batch norms in them normalise by the batch in training, as in
    the published code of DINO, and keep running statistics of their own.

    Args:
        config: the run.
        teachers: what `teachers_of` asks for, by the same keys.
    """

    name: ClassVar[str]
    """The value of the key `objective`."""
    label: ClassVar[str] = "Training"
    """What the progress bar says."""

    def __init__(self, config: Config, teachers: Mapping[str, FrozenTeacher] | None = None) -> None:
        super().__init__()
        self.config = config

    # What the configuration says, without networks

    @classmethod
    def terms_of(cls, config: Config) -> dict[str, Term]:
        """Returns the terms of the loss that are switched on, by name."""
        raise NotImplementedError

    @classmethod
    def schedules_of(cls, config: Config) -> dict[str, Scheduled]:
        """Returns the scheduled values that `forward` and `update_averages` read, by name, without the optimiser's."""
        return {"teacher_momentum": Scheduled(0.996, 1.0)}

    @classmethod
    def teachers_of(cls, config: Config) -> dict[str, Teacher]:
        """Returns the frozen teachers that the run reads, by the key that names the path. No checkpoint has them."""
        return {}

    @classmethod
    def places_of(cls, config: Config) -> dict[str, Places]:
        """Returns where the networks of each student are, by its name; the first one is `""`."""
        return {"": Places("student", "average")}

    @classmethod
    def describe(cls, config: Config) -> str:
        """Returns how the run trains, for a model card: `pretrained without labels (…)`."""
        return f"trained without labels ({cls.name})"

    @classmethod
    def recipe(cls, config: Config) -> dict[str, str | None]:
        """Returns the rows of a model card's recipe that only this objective has."""
        terms = cls.terms_of(config)
        return {f"Loss weights ({', '.join(terms)})": ", ".join(f"{term.weight:.4g}" for term in terms.values())}

    # Networks

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        """Builds the networks of a student with fresh weights: `backbone` and what the objective puts on it."""
        raise NotImplementedError

    def build_backbone(self, student: str, drop_path_rate: float) -> Backbone:
        """Builds the backbone of a student with fresh weights, for `build_networks`."""
        model = self.config.models[student]
        return find_family(model.family).build(model, self.config.crops.global_size, drop_path_rate)

    @property
    def networks(self) -> dict[str, Networks]:
        """Student and average of each student, by its name."""
        return {
            name: Networks(_networks_at(self, place.student), _networks_at(self, place.average))
            for name, place in self.places_of(self.config).items()
        }

    @property
    def frozen(self) -> list[FrozenTeacher]:
        """Frozen teachers that are not part of this module: in no checkpoint, and placed by the training step."""
        return []

    def build_students(self) -> None:
        """Builds every student and its average, equal to it, where `places_of` says.

        Raises:
            ValueError: the run masks patches, and a backbone takes no masks.
        """
        models = self.config.models
        for name, place in self.places_of(self.config).items():
            model = models[name]
            student = nn.ModuleDict(cast(dict[str, nn.Module], self.build_networks(name, model.drop_path_rate)))
            average = nn.ModuleDict(cast(dict[str, nn.Module], self.build_networks(name, 0.0)))
            if (masked := self.config.masks[0]) and not backbone_of(student).takes_masks:
                raise ValueError(
                    f"model.family={model.family} takes no masks, and objective={self.config.objective} masks "
                    f"{masked:.0%} of the global crops; switch its masked term off (ibot.loss_weight=0), or take "
                    "another family"
                )
            _put(self, place.student, student)
            _put(self, place.average, average)
        self.copy_students_to_averages()
        for name, (student, average) in self.networks.items():
            average.requires_grad_(False)
            if models[name].gradient_checkpointing:
                recompute_blocks(backbone_of(student))
            if models[name].compile:
                for network in (student, average):
                    for block in backbone_of(network).blocks.values():
                        block.compile()

    @torch.no_grad()
    def copy_students_to_averages(self) -> None:
        """Makes the averages equal to the students."""
        for student, average in self.networks.values():
            average.load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the students. The averages drop nothing in either; their batch norms follow the mode.

        In training these normalise with the statistics of the batch, as in the published code of DINO, whose teacher is
        in training mode, and their running statistics are their own, not averages of the student's.
        """
        super().train(mode)
        for networks in self.networks.values():
            networks.average.eval()
            for norm in batch_norms_of(networks.average):
                norm.train(mode)
        return self

    def forward(self, batch: SSLBatch, values: Any, diagnose: bool = False) -> ObjectiveOutput:
        """Computes the loss of a batch. Collective: call on all ranks.

        Args:
            batch: crops that are normalised floats, masks and mask indices, see `SSLBatch`.
            values: the scheduled values of this step as attributes, see `schedules_of`.
            diagnose: fill `ObjectiveOutput.diagnostics` too.
        """
        raise NotImplementedError

    @torch.no_grad()
    def features(
        self, pixel_values: Tensor, layers: int = 1, student: str = "", final_norm: bool = True, average: bool = True
    ) -> list[Features]:
        """Returns the features of the last `layers` blocks of a student's average, after the final norm or before it.

        Collective where it is sharded.

        Args:
            average: False: of the student itself.
        """
        networks = self.networks[student]
        backbone = backbone_of(networks.average if average else networks.student)
        return features_of(backbone, pixel_values, layers, final_norm)

    @torch.no_grad()
    def update_averages(self, values: Any) -> None:
        """Moves the averages one step, over local shards: `average = m average + (1 - m) student`.

        At a momentum of 0 they become the student, at 1 they keep what they are.
        """
        for student, average in self.networks.values():
            averaged: list[Tensor] = list(average.parameters())
            trained: list[Tensor] = list(student.parameters())
            torch._foreach_mul_(averaged, values.teacher_momentum)
            torch._foreach_add_(averaged, trained, alpha=1 - values.teacher_momentum)


def backbone_of(networks: nn.ModuleDict) -> Backbone:
    """Returns the backbone among the networks of a student, or among their averages."""
    return cast(Backbone, networks["backbone"])


def _networks_at(objective: nn.Module, place: str) -> nn.ModuleDict:
    return cast(nn.ModuleDict, objective.get_submodule(place))


def _put(module: nn.Module, place: str, network: nn.Module) -> None:
    """Makes `network` the submodule at the dotted `place`, with `ModuleDict`s on the way."""
    *path, name = place.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.ModuleDict())
        module = module.get_submodule(part)
    module.add_module(name, network)


OBJECTIVES: dict[str, type[Objective[Any]]] = {}
"""By the value of the key `objective`."""
Kind = TypeVar("Kind", bound=Objective[Any])


def register_objective(name: str, config: type[RunConfig] | None = None) -> Callable[[type[Kind]], type[Kind]]:
    """Registers an objective under the value of the key `objective`, and the configuration of its runs.

    Args:
        name: the value of the key.
        config: derives from `RunConfig`; default: one that is registered under the same name.

    Raises:
        TypeError: the class lacks a part of the contract, which the message names.
    """

    def register(kind: type[Kind]) -> type[Kind]:
        if not (inspect.isclass(kind) and issubclass(kind, Objective)):
            raise TypeError(f"the objective {name!r} must derive from Objective, not {kind!r}")
        missing = [
            part
            for part in ("terms_of", "build_networks", "forward")
            if inspect.getattr_static(kind, part) is inspect.getattr_static(Objective, part)
        ]
        if missing:
            raise TypeError(f"the objective {name!r} ({kind.__name__}) does not define {', '.join(missing)}")
        if config is not None:
            if not (inspect.isclass(config) and issubclass(config, RunConfig)):
                raise TypeError(f"the configuration of the objective {name!r} must derive from RunConfig")
            RUNS[name] = config
        elif name not in RUNS:
            raise TypeError(f"the objective {name!r} has no configuration; give one that derives from RunConfig")
        kind.name = name
        OBJECTIVES[name] = kind
        return kind

    return register


def find_objective(config: RunConfig) -> type[Objective[Any]]:
    """Returns the objective of a run.

    Raises:
        ValueError: none of that name is registered.
    """
    if config.objective not in OBJECTIVES:
        raise ValueError(f"objective={config.objective!r} is not one of {', '.join(OBJECTIVES)}; {IMPORT_FIRST}")
    return OBJECTIVES[config.objective]
