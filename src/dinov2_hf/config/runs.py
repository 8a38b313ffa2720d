"""Whole configurations of runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from .checks import at_least, interval, named, share
from .data import ColorsConfig, CropsConfig, DataConfig
from .model import DinoConfig, DistillationConfig, IbotConfig, InitConfig, KoleoConfig, ModelConfig, TeacherConfig
from .run import HubConfig, KnnConfig, OptimConfig, RunEvaluationConfig, TrainConfig


@dataclass
class PretrainConfig:
    """A pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    koleo: KoleoConfig = field(default_factory=KoleoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    colors: ColorsConfig = field(default_factory=ColorsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    evaluations: dict[str, RunEvaluationConfig] = field(default_factory=dict)
    """Evaluations during the run, each under a name of your own, which its figures are logged under:
    `evaluations.birds.protocol=linear evaluations.birds.config=birds.yaml`."""
    hub: HubConfig = field(default_factory=HubConfig)

    def check(self) -> PretrainConfig:
        """Refuses impossible values and combinations.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        self.model.check()
        self.init.check()
        self.dino.check("dino")
        self.ibot.check("ibot")
        self.teacher.check()
        self.crops.check(self.model.patch_size)
        self.colors.check(self.model.num_channels)
        self.data.check()
        self.optim.check()
        self.train.check()
        self.knn.check(self.model.patch_size)
        for name, evaluation in self.evaluations.items():
            named("evaluations", name)
            evaluation.check(name)
        self.hub.check()
        for name in ("dino", "ibot", "koleo"):
            at_least(f"{name}.loss_weight", getattr(self, name).loss_weight, 0)
        if self.dino.loss_weight == self.ibot.loss_weight == 0:
            raise ValueError(
                "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on"
            )
        interval("ibot.mask_ratio", self.ibot.mask_ratio, 0, 1)
        share("ibot.mask_probability", self.ibot.mask_probability)
        if self.koleo.loss_weight and self.train.batch_size < 2:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} leaves KoLeo without neighbours; "
                "use 2 or more, or koleo.loss_weight=0"
            )
        return self


@dataclass
class DistillConfig(PretrainConfig):
    """A distillation run: `model` is the student. Nothing is masked and nothing dropped (DINOv2, section 5)."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(preset="small", drop_path_rate=0.0))
    ibot: IbotConfig = field(default_factory=lambda: IbotConfig(mask_probability=0.0))
    distill: DistillationConfig = field(default_factory=DistillationConfig)
    students: dict[str, ModelConfig] = field(default_factory=dict)
    """Further students that learn from the same teacher forward, each under a name of your own:
    `students.tiny.preset=tiny students.tiny.drop_path_rate=0`."""

    def check(self) -> DistillConfig:
        """As for pretraining.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        super().check()
        self.distill.check()
        if self.ibot.mask_probability:
            raise ValueError(
                f"ibot.mask_probability={self.ibot.mask_probability}: distillation masks nothing, iBOT compares all "
                "patches; use 0"
            )
        for name, student in self.students.items():
            named("students", name)
            student.check()
            if student.num_channels != self.model.num_channels:
                raise ValueError(
                    f"students.{name}.num_channels={student.num_channels}, but model.num_channels="
                    f"{self.model.num_channels}; all students see the same images, set both alike"
                )
            self.crops.check(student.patch_size)
        if self.distill.objective == "features" and self.crops.num_local:
            raise ValueError(
                f"crops.num_local={self.crops.num_local}: features are compared on global crops alone; use 0"
            )
        return self

    def weight_of(self, term: str) -> float:
        """The weight of a term in the objective."""
        if self.distill.objective == "prototypes":
            return getattr(self, term.split("_")[0]).loss_weight
        part, kind = term.split("_", 1)
        return getattr(self.distill, f"{part}_weight") * getattr(self.distill, f"{kind}_weight")
