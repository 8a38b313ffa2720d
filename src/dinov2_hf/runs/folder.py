"""The output folder of a run: where everything lies in it, and its one reader and writer."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..config import RunConfig, load_saved_config, save_config
from ..data.broken import FILE_NAME as BROKEN_FILE
from ..files import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, beside
from .checkpoint import RunState, find_checkpoints, read_state, remove_partial_checkpoints
from .integrity import choose_checkpoint, prune_checkpoints, set_aside
from .lock import RunLock
from .metrics import read_metrics


class RunFolder:
    """The folder `train.output_dir` of a run. Nothing is read or made until a method asks for it.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.lock = RunLock(self.path)
        """Held while a run writes into the folder."""

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder:
        """The folder of the run that wrote a checkpoint."""
        return cls(checkpoint.resolve().parent.parent)

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / METRICS_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def broken_file(self) -> Path:
        """The list of images that could not be read; only there where some could not."""
        return self.path / BROKEN_FILE

    @property
    def pushing(self) -> Path:
        """The folder of exports on their way to the Hub."""
        return self.path / "pushing"

    def export(self, student: str = "") -> Path:
        """The folder of the exported average of a student (`""`: the first)."""
        return self.path / (f"export-{student}" if student else "export")

    def features_picture(self, student: str = "") -> Path:
        """The picture of the features of a student's average."""
        return self.path / (f"features-{student}.png" if student else "features.png")

    def read_config(self) -> RunConfig:
        """Reads the config of the newest launch.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it cannot be read.
        """
        return load_saved_config(self.config_file)

    def write_config(self, config: RunConfig) -> None:
        """Writes the config of a launch, whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        with beside(self.config_file) as temporary:
            save_config(config, temporary)

    def read_metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """Returns the lines of metrics, up to update `until`; none where the run wrote none."""
        return [line for line in read_metrics(self.path) if until is None or line["step"] <= until]

    def read_state(self) -> RunState | None:
        """Returns the state in the newest checkpoint in which it can be read."""
        for checkpoint in reversed(self.find_checkpoints()):
            try:
                return read_state(checkpoint)[0]
            except ValueError:  # the run is replacing it, or it is damaged
                continue
        return None

    def find_checkpoints(self) -> list[Path]:
        """Returns the complete checkpoints, oldest first."""
        return find_checkpoints(self.checkpoints)

    def choose_checkpoint(self, resume: str) -> tuple[Path | None, list[Path]]:
        """Returns the checkpoint to continue from and newer damaged ones: see `integrity.choose_checkpoint`."""
        return choose_checkpoint(self.checkpoints, resume)

    def clean_checkpoints(self, damaged: list[Path]) -> None:
        """Renames damaged checkpoints, and removes what a killed run left of those that it was writing or removing."""
        remove_partial_checkpoints(self.checkpoints)
        set_aside(damaged)

    def prune_checkpoints(self, keep: int, keep_every: int, checkpoint_steps: int) -> None:
        """Removes old checkpoints: see `integrity.prune_checkpoints`."""
        prune_checkpoints(self.checkpoints, keep, keep_every, checkpoint_steps)
