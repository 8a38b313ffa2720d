"""What a run says about itself: numbers to JSONL and trackers, and their curves as a picture."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..files import METRICS_FILE, beside, sync, writing

logger = logging.getLogger(__name__)

_TERM_OF_0_5 = re.compile(r"([\w-]+\.)?(dino_global|dino_local|ibot|koleo|(cls|patch)_(cosine|smooth_l1))")


class MeanMetrics:
    """Means of scalars over the updates that gave them since the last reading; they stay on the device until then."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Takes in the scalars of one update; they are summed in float32."""
        for name, value in scalars.items():
            value = value.float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] += 1

    def state(self, accelerator: Accelerator) -> dict[str, list[Any]]:
        """By name, the number of updates since the last reading and the sum of each process. Collective."""
        if not self._sums:
            return {}
        sums = accelerator.gather(torch.stack(list(self._sums.values()))[None]).T.tolist()
        return {name: [self._counts[name], own] for name, own in zip(self._sums, sums)}

    def load(self, state: Mapping[str, list[Any]], accelerator: Accelerator) -> None:
        """Continues from `state`: exactly on as many processes; on another number each takes the mean of the sums."""
        for name, (count, sums) in state.items():
            same = len(sums) == accelerator.num_processes
            own = sums[accelerator.process_index] if same else sum(sums) / len(sums)
            self._sums[name] = torch.tensor(own, dtype=torch.float32, device=accelerator.device)
            self._counts[name] = count

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over updates and processes; starts anew. Collective: call on all ranks."""
        if not self._sums:
            return {}
        names = list(self._sums)
        values = torch.stack([self._sums[name] / self._counts[name] for name in names])
        values = accelerator.reduce(values, reduction="mean").tolist()
        self._clear()
        return dict(zip(names, values))


class MetricLog:
    """Writes lines of numbers to `metrics.jsonl` in a folder and to accelerate's trackers; main process only.

    Args:
        folder: where the file lies; an existing one is continued.
        start_step: lines after this step, left by a run that was killed, are dropped.

    Attributes:
        evaluated: whether there is a line of an evaluation after `start_step` updates.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, start_step: int) -> None:
        self._accelerator = accelerator
        self._path = folder / METRICS_FILE
        self.evaluated = False
        accelerator.init_trackers(".", init_kwargs={"tensorboard": {"purge_step": start_step}})
        if accelerator.is_main_process:
            kept = [line for line in read_metrics(folder) if line["step"] <= start_step] if start_step else []
            with beside(self._path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            for line in kept:
                if line["step"] == start_step:  # a kill may have come between the file and the trackers
                    self.evaluated |= not is_of_update(line)
                    self._track(start_step, {name: value for name, value in line.items() if name != "step"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: the values after `step` updates; `null` where one is not finite, as JSON has no other word."""
        if self._accelerator.is_main_process:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            with writing(self._path), self._path.open("a") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
        self._track(step, values)

    def sync(self) -> None:
        """Brings the lines to the disk, so that a power cut after the next checkpoint leaves them."""
        if self._accelerator.is_main_process:
            sync(self._path)

    def _track(self, step: int, values: Mapping[str, float | None]) -> None:
        self._accelerator.log({name: math.nan if value is None else value for name, value in values.items()}, step=step)


def is_of_update(line: Mapping[str, float | None]) -> bool:
    """Whether a line of `metrics.jsonl` is of updates, not of an evaluation."""
    return "epoch" in line


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl` in `folder`; a warning counts those that are damaged, and they are left out.

    A last line without its end is left out silently: a run is writing it, or a kill cut it short.
    The values are numbers, or None where one was not finite.
    """
    path = folder / METRICS_FILE
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    read = [_read_line(text) for text in texts[:-1] if text.strip()]
    lines = [line for line in (*read, _read_line(texts[-1])) if line is not None]
    if damaged := read.count(None):
        logger.warning(
            "%d of %d lines of %s %s damaged and left out", damaged, len(read), path, "is" if damaged == 1 else "are"
        )
    return lines


def _read_line(text: str) -> dict[str, Any] | None:
    """Returns the values of a line by their current names, or None where it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(line, dict) and _is_number(line.get("step"))):
        return None
    if not all(value is None or _is_number(value) for value in line.values()):
        return None
    return {current_name(name): value for name, value in line.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def current_name(name: str) -> str:
    """Returns the name of a metric; dinov2_hf 0.5 wrote `dino_global` for `loss/dino_global`."""
    return f"loss/{name}" if _TERM_OF_0_5.fullmatch(name) else name


def terms_in(line: Mapping[str, float | None], student: str = "") -> dict[str, float]:
    """Returns the finite terms of the loss in a line of metrics, by the names that the objective gives them.

    Args:
        student: a further student of a distillation; default: the first one, with the whole `loss`.
    """
    found = {} if student else {"loss": line.get("loss")}
    for name, value in line.items():
        of, _, term = name.removeprefix("loss/").rpartition(".")
        if name.startswith("loss/") and of == student:
            found[term] = value
    return {name: value for name, value in found.items() if value is not None}


def plot_metrics(folder: Path) -> Path:
    """Draws the curves of `metrics.jsonl` in `folder` to `loss.png` beside it."""
    from matplotlib.figure import Figure  # pyplot would change the caller's state

    lines = read_metrics(folder)
    panels = {
        "Objective": ("loss", "loss/"),
        "k-NN accuracy of teacher and student (%)": ("knn_accuracy", "knn_accuracy/"),
        "Gradient norm before clipping": ("grad_norm/",),
        "Learning rate": ("lr", "last_layer_lr"),
        "Targets: entropy (of its maximum) and share of prototypes used": ("target_entropy/", "prototypes_used/"),
        "KL divergence of the student from the targets (nats)": ("target_kl/",),
        "Effective rank of the teacher's CLS (RankMe)": ("rankme",),
    }
    figure = Figure(figsize=(12, 16), layout="constrained")
    axes = figure.subplots(4, 2)
    logged = dict.fromkeys(name for line in lines for name in line)
    for axis, (title, wanted) in zip(axes.flat, panels.items()):
        for name in (n for w in wanted for n in logged if n == w or (w.endswith("/") and n.startswith(w))):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                marker = "o" if len(points) < 30 else None
                label = name.removeprefix("loss/").removeprefix("grad_norm/")
                axis.plot(*zip(*points), label=label, marker=marker, markersize=4)
        axis.set_title(title)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    path = folder / "loss.png"
    figure.savefig(path, dpi=110)
    return path
