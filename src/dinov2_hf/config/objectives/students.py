"""What the configurations of both distillations share: a frozen teacher and one or several students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..checks import named
from ..model import BackboneConfig, ModelConfig
from ..paths import path_to
from ..run import RunConfig


@dataclass
class TeacherPathConfig:
    """The frozen teacher."""

    teacher: str | None = field(default=None, metadata=path_to("model"))
    """With prototypes: a run, one of our exports or an original `.pth`, with its heads. With features: also any vision
    transformer that `AutoModel` loads, on the Hub or in a folder."""

    def check(self) -> None:
        if not self.teacher:
            raise ValueError("distill.teacher is not set; give a run, an export with heads, or a model on the Hub")


@dataclass
class DistillationRunConfig(RunConfig):
    """A distillation run: `model` is the student."""

    recipes: ClassVar[str] = "distill"

    model: BackboneConfig = field(default_factory=lambda: ModelConfig(preset="small", drop_path_rate=0.0))
    distill: TeacherPathConfig = field(default_factory=TeacherPathConfig)
    students: dict[str, ModelConfig] = field(default_factory=dict)
    """Further students that learn from the same teacher forward, each under a name of your own:
    `students.tiny.preset=tiny students.tiny.drop_path_rate=0`."""

    @property
    def models(self) -> Mapping[str, BackboneConfig]:
        return {"": self.model, **self.students}

    def check(self) -> DistillationRunConfig:
        super().check()
        self.distill.check()
        for name, student in self.students.items():
            named("students", name)
            student.check(f"students.{name}")
            if student.num_channels != self.model.num_channels:
                raise ValueError(
                    f"students.{name}.num_channels={student.num_channels}, but model.num_channels="
                    f"{self.model.num_channels}; all students see the same images, set both alike"
                )
            self.crops.check(student.stride, student.stride_in_words)
        return self
