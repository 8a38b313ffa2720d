"""The configuration of a run: the sections of every run, and the registry of those that an objective adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from .checks import IMPORT_FIRST, named
from .data import ColorsConfig, CropsConfig, DataConfig
from .model import BackboneConfig, InitConfig, ModelConfig
from .terms import Masks, MomentumConfig
from .training import HubConfig, KnnConfig, OptimConfig, RunEvaluationConfig, TrainConfig


@dataclass
class RunConfig:
    """The sections of every run. An objective derives its configuration from it and adds its own sections."""

    recipes: ClassVar[str] = "pretrain"
    """The kind of recipes among which a name is looked for first."""

    objective: str = "dinov2"
    """What is trained for: dino, ibot, dinov2, simdino, distill_prototypes or distill_features."""
    model: BackboneConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    colors: ColorsConfig = field(default_factory=ColorsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    evaluations: dict[str, RunEvaluationConfig] = field(default_factory=dict)
    """Evaluations during the run, each under a name of your own, which its metrics are logged under:
    `evaluations.birds.protocol=linear evaluations.birds.config=birds.yaml`."""
    hub: HubConfig = field(default_factory=HubConfig)

    @property
    def models(self) -> Mapping[str, BackboneConfig]:
        """The section of each student's backbone, by the name of the student; the first one is `""`."""
        return {"": self.model}

    @property
    def masks(self) -> Masks | tuple[float, tuple[float, float]]:
        """How patches are masked: share of the global crops that are masked, and the smallest and largest share of
        masked patches in these; or `Masks`, which has more."""
        return Masks()

    @property
    def average_update(self) -> str:
        """How the averages follow the students: `teacher.update`, where the objective has that section."""
        teacher = getattr(self, "teacher", None)
        return teacher.update if isinstance(teacher, MomentumConfig) else "momentum"

    def check(self) -> RunConfig:
        """Refuses impossible values and combinations.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        self.model.check()
        self.init.check()
        self.crops.check(self.model.stride, self.model.stride_in_words)
        self.colors.check(self.model.num_channels)
        self.data.check()
        self.optim.check()
        self.train.check()
        self.knn.check(self.model.stride, self.model.stride_in_words)
        for name, evaluation in self.evaluations.items():
            named("evaluations", name)
            evaluation.check(name)
        self.hub.check()
        return self


RUNS: dict[str, type[RunConfig]] = {}
"""The configuration of the runs of each objective, by the name of the objective."""


def register_run_config(name: str) -> Callable[[type[RunConfig]], type[RunConfig]]:
    """Registers the configuration of an objective under the value of the key `objective`.

    Raises:
        TypeError: the class does not derive from `RunConfig`.
    """

    def register(kind: type[RunConfig]) -> type[RunConfig]:
        if not (isinstance(kind, type) and issubclass(kind, RunConfig)):
            raise TypeError(f"the configuration of the objective {name!r} must derive from RunConfig, not {kind!r}")
        RUNS[name] = kind
        return kind

    return register


def run_config_of(objective: str) -> type[RunConfig]:
    """Returns the configuration of the runs of an objective.

    Raises:
        ValueError: no objective of that name is registered.
    """
    if objective not in RUNS:
        raise ValueError(f"objective={objective!r} is not one of {', '.join(RUNS)}; {IMPORT_FIRST}")
    return RUNS[objective]
