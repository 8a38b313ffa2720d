"""A run on disk: what it left, and what can be made of it."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import RunConfig
from ..evaluation import Report
from ..features import FeatureExtractor
from ..runs import RunFolder, plot_metrics
from ..weights import export_source
from .evaluation import evaluate
from .features import Precision, load_backbone
from .keys import Keys

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run in its folder, finished or not.

    Args:
        folder: `train.output_dir` of the run.
        stopped: whether a signal ended it before its end; calling the same function again continues it.
    """

    def __init__(self, folder: str | PathLike[str], stopped: bool = False) -> None:
        self._files = RunFolder(folder)
        self.folder: Path = self._files.path
        self.stopped = stopped

    @property
    def config(self) -> RunConfig:
        """Every value of the configuration of the newest launch."""
        return self._files.read_config()

    @property
    def exports(self) -> dict[str, Path]:
        """The folders of the exported students by name, `""` for the first one; those that are there."""
        folders = {student: self._files.export(student) for student in self.config.models}
        return {student: folder for student, folder in folders.items() if folder.is_dir()}

    @property
    def pictures(self) -> list[Path]:
        """The curves (`loss.png`) and the pictures of features, where they are drawn."""
        return sorted(self.folder.glob("*.png"))

    def metrics(self) -> pd.DataFrame:
        """Returns the logged numbers: a row an update, a column a metric, NaN where one was not logged.

        The index is `step`, the number of updates made; docs/python.md names the columns.
        """
        import pandas as pd

        rows: dict[float, dict[str, float]] = {}
        for line in self._files.read_metrics():
            rows.setdefault(line["step"], {}).update(line)
        table: pd.DataFrame = pd.DataFrame(list(rows.values()))
        table = table.set_index("step").sort_index() if rows else table.rename_axis("step")
        return table

    def plot(self) -> Path:
        """Draws the curves of the metrics to `loss.png` in the folder, during the run too; returns its path."""
        return plot_metrics(self.folder)

    def export(
        self,
        path: str | PathLike[str] | None = None,
        *,
        format: str = "hf",
        network: str = "teacher",
        student: str = "",
        image_size: int | tuple[int, int] | None = None,
    ) -> Path:
        """Writes the newest weights in another format, and returns where.

        Args:
            path: nothing may be there; default: the folder that the run exports to, which is taken as it is where it is
                there.
            format: `hf` (a folder for transformers), `original`, `timm` or `onnx`.
            network: `teacher` (the average) or `student`.
            student: name of a further student of a distillation.
            image_size: resample the position embeddings to this side, or height and width, in pixels.

        Raises:
            FileNotFoundError, ValueError, ImportError: as of `dinov2-hf export`.
        """
        target = self._files.export(student) if path is None else Path(path)
        if path is None and (format, network, image_size) != ("hf", "teacher", None):
            raise ValueError("the run's own export is its teacher in the format hf; give a path for another one")
        if path is None and target.is_dir():
            return target
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        return export_source(str(self.folder), target, format, network, student, image_size=size).output

    def backbone(
        self, *, student: str = "", device: str | torch.device | None = None, precision: Precision = "fp32"
    ) -> FeatureExtractor:
        """Loads the exported average of a student, or that of the newest checkpoint; see `load_backbone`."""
        export = self._files.export(student)
        if student and not export.is_dir():
            raise FileNotFoundError(f"{export} does not exist; the run exports its students at its end")
        return load_backbone(export if export.is_dir() else self.folder, device=device, precision=precision)

    def evaluate(
        self,
        evaluator: str,
        data: Any = None,
        test: Any = None,
        *,
        config: Any = None,
        keys: Keys = (),
        output_dir: str | PathLike[str] | None = None,
        device: str | torch.device | None = None,
    ) -> Report:
        """Evaluates the newest weights; see `dinov2_hf.evaluate`."""
        return evaluate(
            os.fspath(self.folder),
            evaluator,
            data,
            test,
            config=config,
            keys=keys,
            output_dir=output_dir,
            device=device,
        )

    def __repr__(self) -> str:
        lines = self._files.read_metrics()
        updates = max((line["step"] for line in lines), default=0)
        return f"Run({os.fspath(self.folder)!r}, {updates:g} updates{', stopped' if self.stopped else ''})"


def open_run(folder: str | PathLike[str]) -> Run:
    """Opens the folder of a run.

    Raises:
        FileNotFoundError: it is not the folder of a run.
    """
    files = RunFolder(folder)
    if not files.config_file.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it lacks {files.config_file.name}")
    return Run(folder)
