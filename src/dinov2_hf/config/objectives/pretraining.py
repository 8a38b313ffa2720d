"""What the configurations of the objectives of pretraining share: a teacher, and further terms."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import named
from ..run import RunConfig
from ..terms import MomentumConfig, TermConfig


@dataclass
class PretrainingRunConfig(RunConfig):
    """A run of a student against its moving average."""

    teacher: MomentumConfig = field(default_factory=MomentumConfig)
    terms: dict[str, TermConfig] = field(default_factory=dict)
    """Further terms, by the names under which they are registered from outside the package."""

    def check(self) -> PretrainingRunConfig:
        super().check()
        self.teacher.check()
        for name, term in self.terms.items():
            named("terms", name)
            term.check(f"terms.{name}")
        return self
