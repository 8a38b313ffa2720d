"""Runs of many kinds, killed and stopped at random moments, against the same runs undisturbed.

A run of a kind is interrupted a few times and then left to end. Everything that it leaves has to equal, apart from
times, what the uninterrupted run left, which had no data workers: checkpoint, export, metrics, TensorBoard's values,
broken files and what lies on the Hub.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..hub.server import LoopbackHub
from ..patience import HANGS
from ..tiny import TINY, TINY_FEATURES, write_photographs
from .conftest import FSDP2
from .moments import MOMENTS
from .server import Launch, Server, names_in, newest_step, read_log, read_tensors

SOURCES = ("folder", "parquet", "tar", "mixture", "broken")
PARALLEL = ("one process", "DDP", "FSDP2")
OBJECTIVES = ("pretrain", "prototypes", "features")
CADENCE = [
    "train.epochs=8.5",
    "train.log_every=5",
    "train.checkpoint_epochs=1.5",
    "train.keep_checkpoints=2",
    "knn.epochs=2",
    "evaluations.probe.epochs=3.5",
    "hub.push_every=2.5",
]
"""17 updates; logs every 5, checkpoints every 3, k-NN every 4, a linear probe every 7, pushes every 5."""
UPDATES = 17


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    source: str
    workers: int
    parallel: str = "one process"
    objective: str = "pretrain"
    accumulation: int = 1

    @property
    def processes(self) -> int:
        return 1 if self.parallel == "one process" else 2

    @property
    def name(self) -> str:
        accumulated = ", 2 forwards an update" if self.accumulation > 1 else ""
        return f"{self.source}, {self.workers} workers, {self.parallel}, {self.objective}{accumulated}"


KINDS = [
    Kind("parquet", 1, accumulation=2),
    Kind("broken", 2, "DDP"),
    Kind("mixture", 0, "FSDP2"),
    Kind("tar", 2, objective="features"),
    Kind("folder", 1, objective="prototypes"),
    Kind("broken", 1, "FSDP2", accumulation=2),
    Kind("folder", 0, "DDP", accumulation=2),
    Kind("tar", 1, "DDP"),
    Kind("parquet", 2, "FSDP2"),
    Kind("mixture", 2),
    Kind("broken", 0),
    Kind("tar", 0),
    Kind("broken", 1, "DDP", "prototypes"),
    Kind("mixture", 1, "FSDP2", "features"),
    Kind("parquet", 0, "DDP", "features"),
    Kind("folder", 2, "FSDP2", "prototypes", accumulation=2),
]
"""The first five have every source, number of workers, way of parallel training and objective."""

DELAYS = {"start": 0.05, "update": 0.03, "checkpoint": 0.12, "evaluation": 0.25, "push": 0.25, "export": 0.05}
"""Seconds after the entry of a moment within which a run may end; 0 for the others, or at a random time."""


@dataclass(frozen=True)
class Interruption:
    """A signal to a run, sent by one of its processes to itself; where it is SIGKILL, all end then."""

    signal: int
    moment: str
    """Of `MOMENTS`, or `any time`."""
    call: int
    """Which time the moment comes in this launch."""
    delay: float
    """Seconds after it; for `any time`, after the launch."""
    rank: int

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name

    def __str__(self) -> str:
        place = "" if self.moment == "any time" else f" {self.call}"
        return f"{self.name} at {self.moment}{place} + {self.delay:.3f} s, rank {self.rank}"


class Campaign:
    """Interrupts runs; use as a context manager.

    Args:
        folder: for sources, runs and logs.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._whole: dict[Kind, tuple[Path, dict[str, int], float]] = {}
        self._runs = 0

    def __enter__(self) -> Campaign:
        self._exit = contextlib.ExitStack()
        self.hub = self._exit.enter_context(LoopbackHub())
        environment = {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": self.hub.token,
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self._overrides = write_sources(self.folder / "sources")
        self.server = Server(self.folder, environment)
        self._exit.callback(self.server.close)
        return self

    def __exit__(self, *_) -> None:
        self._exit.close()
        assert not self.hub.unknown and not self.hub.errors, (self.hub.unknown, self.hub.errors)

    def run(self, kind: Kind, number: int, interruptions: int) -> tuple[list[Interruption], list[str]]:
        """Interrupts run `number` of a kind, lets it end, and compares it with the uninterrupted one.

        Returns:
            The interruptions, and in what it differs. One that would have come after the end is not among them; then
            the next one comes to a launch of the run that has ended.
        """
        rng = np.random.default_rng([self.seed, number])
        whole, counts, seconds = self.uninterrupted(kind)
        folder, came = self._new_folder(), []
        while len(came) < interruptions:
            planned = draw(rng, kind, counts, seconds, newest_step(folder), interruptions - len(came))
            if self._interrupt(self._launch(kind, folder, kind.workers, planned), planned):
                came.append(planned)
        self._launch(kind, folder, kind.workers).finish_well()
        return came, [*differences(folder, whole), *self._differences_on_hub(folder, whole)]

    def uninterrupted(self, kind: Kind) -> tuple[Path, dict[str, int], float]:
        """Folder, number of moments and seconds of the run that nothing disturbs, without data workers."""
        undisturbed = Kind(kind.source, 0, kind.parallel, kind.objective, kind.accumulation)
        if undisturbed not in self._whole:
            folder, start = self._new_folder(), time.monotonic()
            launch = self._launch(undisturbed, folder, 0).finish_well()
            counts = launch.counts()
            assert all(counts[moment] for moment in MOMENTS if moment != "start"), counts
            self._whole[undisturbed] = folder, counts, time.monotonic() - start
            assert names_in(folder)[-1] == f"step-{UPDATES:08d}" and self.hub.files(f"tester/{folder.name}")
        return self._whole[undisturbed]

    def _new_folder(self) -> Path:
        self._runs += 1
        return self.folder / f"run-{self._runs:03}"

    def _launch(self, kind: Kind, folder: Path, workers: int, planned: Interruption | None = None) -> Launch:
        overrides = [
            *(TINY_FEATURES if kind.objective == "features" else TINY),
            *CADENCE,
            *self._overrides[kind.source],
            *self._overrides["evaluations"],
            f"data.num_workers={workers}",
            f"train.batch_size={max(4 // kind.processes // kind.accumulation, 2)}",
            f"train.gradient_accumulation_steps={kind.accumulation}",
            f"train.output_dir={folder}",
            f"hub.repo_id=tester/{folder.name}",
        ]
        if kind.objective != "pretrain":
            teacher, _, _ = self.uninterrupted(Kind("folder", 0))
            overrides += [f"distill.teacher={teacher}/export", f"objective=distill_{kind.objective}"]
            overrides.append("model.drop_path_rate=0")
        marked = [vars(planned)] if planned and planned.moment != "any time" else []
        return self.server.launch(
            kind.processes,
            overrides,
            FSDP2 if kind.parallel == "FSDP2" else None,
            example="pretrain" if kind.objective == "pretrain" else "distill",
            signals=marked,
        )

    def _interrupt(self, launch: Launch, planned: Interruption) -> bool:
        """Waits for the end of an interrupted launch; whether the interruption came before the run had ended."""
        start, sent = time.monotonic(), planned.moment != "any time"
        while set(codes := launch.codes()) == {None} and time.monotonic() < start + HANGS:
            if not sent and time.monotonic() > start + planned.delay:
                sent = True
                launch.signal(planned.signal)
            time.sleep(0.002)
        if {-signal.SIGKILL, -signal.SIGTERM} & set(codes):  # SIGTERM ends a run that has not begun yet
            launch.signal(signal.SIGKILL)
        codes = set(launch.finish())
        if codes <= {-signal.SIGKILL, -planned.signal} or codes == {128 + signal.SIGTERM}:
            return True
        assert codes == {0}, f"{planned} ended in {codes}: {launch.logs()}"
        return False

    def _differences_on_hub(self, folder: Path, whole: Path) -> list[str]:
        """Where the repositories of two runs differ."""
        first, second = (self.hub.files(f"tester/{run.name}") for run in (folder, whole))
        return [f"the Hub's {name}" for name in compare_exports(first, second, (folder.name, whole.name))]


def draw(
    rng: np.random.Generator, kind: Kind, counts: dict[str, int], seconds: float, step: int, remaining: int
) -> Interruption:
    """A random interruption of a launch that begins after `step` updates.

    Args:
        counts: how often each moment came in the uninterrupted run.
        seconds: that it took.
        remaining: interruptions of the run from this one on: each but the last leaves room for the others.
    """
    number = int(rng.choice([signal.SIGKILL, signal.SIGTERM], p=[0.7, 0.3]))
    share = (UPDATES - step) / UPDATES / remaining
    rank = int(rng.integers(kind.processes))
    only_main = {"log", "rename", "prune", "push", "export", "the end"}
    moments = [moment for moment in ("any time", *MOMENTS) if moment != "start" or step]
    if remaining > 1:
        moments.remove("the end")
    if number == signal.SIGTERM:  # at the end nothing looks for it
        moments = [moment for moment in moments if moment not in ("rename", "prune", "export", "the end")]
    if step == UPDATES:
        number, moments = signal.SIGKILL, ["start", "rewriting the metrics", "export", "the end"]
    moment = str(rng.choice(moments))
    if moment == "any time":
        return Interruption(number, moment, 0, float(rng.uniform(0, seconds * (0.2 + 0.6 * share))), rank)
    call = 1 + int(rng.integers(max(round(counts[moment] * share), 1)))
    delay = float(rng.choice([0, rng.uniform(0, DELAYS.get(moment, 0))]))
    return Interruption(number, moment, call, delay, 0 if moment in only_main else rank)


_SHARDS = 8


def write_sources(folder: Path) -> dict[str, list[str]]:
    """Writes a source of every kind; overrides that name it, and those of the evaluations."""
    photographs = write_photographs(_made(folder / "folder"))
    files = [path.read_bytes() for path in sorted(photographs.rglob("*.jpg"))]
    broken = write_photographs(_made(folder / "broken"))
    for path in sorted(broken.rglob("*.jpg"))[::4]:
        path.write_bytes(path.read_bytes()[:300])
    for shard in range(_SHARDS):
        path = _made(folder / "parquet") / f"train-{shard}.parquet"
        table = pa.table({"image": files[shard::_SHARDS]})
        pq.write_table(table, path, row_group_size=1, compression="none", use_dictionary=False)
        if shard == 5:  # its second row group is damaged
            start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
            data = path.read_bytes()
            path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
        path = _made(folder / "tar") / f"train-{shard}.tar"
        with tarfile.open(path, "w") as archive:
            for number, data in enumerate(files[shard::_SHARDS]):
                entry = tarfile.TarInfo(f"{number:02}.jpg")
                entry.size = len(data) if number != 2 else 200  # a broken image a shard
                archive.addfile(entry, io.BytesIO(data[: entry.size]))
        if shard == 2:  # it ends within its second member
            path.write_bytes(path.read_bytes()[:2500])
    probe = folder / "probe.yaml"
    probe.write_text(
        f"train: {{path: {photographs}}}\ntest: {{path: {photographs}, split: train}}\n"
        "learning_rates: [0.1]\nblocks: [1]\niterations: 3\nglobal_batch: 8\nnum_workers: 0\n"
    )
    streamed = ["data.train.streaming=true", "data.shuffle_buffer=16"]
    return {
        "folder": [f"data.train.path={photographs}"],
        "broken": [f"data.train.path={broken}", "data.max_broken_share=0.5"],
        "parquet": [f"data.train.path={folder / 'parquet'}", *streamed],
        "tar": [f"data.train.path={folder / 'tar'}", "data.max_broken_share=0.5", *streamed],
        "mixture": [
            f"data.train.path={broken}",
            f"data.mix.tars.path={folder / 'tar'}",
            "data.mix.tars.streaming=true",
            "data.mix.tars.weight=2",
            "data.shuffle_buffer=16",
            "data.max_broken_share=0.5",
        ],
        "evaluations": [
            f"knn.reference.path={photographs}",
            f"knn.query.path={photographs}",
            "knn.query.split=train",
            "knn.resize_size=40",
            "knn.crop_size=32",
            "evaluations.probe.protocol=linear",
            f"evaluations.probe.config={probe}",
        ],
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def differences(folder: Path, whole: Path) -> Iterator[str]:
    """In what the folder of a run differs from that of the uninterrupted one, apart from times."""
    last = f"step-{UPDATES:08d}"
    if names_in(folder)[-1] != last or any(name.startswith("writing-") for name in names_in(folder)):
        yield f"checkpoints {names_in(folder)}"
    first, second = (read_tensors(run / "checkpoints" / last) for run in (folder, whole))
    if first.keys() != second.keys():
        yield f"names of tensors: {first.keys() ^ second.keys()}"
    yield from (f"tensor {name}" for name in first.keys() & second.keys() if not torch.equal(first[name], second[name]))
    for file in ("run.json", "provenance.json"):
        first, second = (json.loads((run / "checkpoints" / last / file).read_text()) for run in (folder, whole))
        yield from (f"{file}: {key}" for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    first, second = ([list(line.items()) for line in read_log(run)] for run in (folder, whole))
    if [line[0] for line in first] != [line[0] for line in second]:
        yield f"lines of metrics.jsonl: {[line[0][1] for line in first]}, not {[line[0][1] for line in second]}"
    else:
        for one, other in zip(first, second):
            if one != other:
                names = [name for (name, value), (_, right) in zip(one, other) if value != right][:5]
                yield f"metrics.jsonl, update {one[0][1]}: {names or 'keys'}"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for name in {name for line in read_log(folder) for name in line} - {"step"}:
        points = [(event.step, np.float32(event.value)) for event in events.Scalars(name)]
        if points != [(line["step"], np.float32(line[name])) for line in read_log(folder) if name in line]:
            yield f"TensorBoard's {name}"
    first, second = (run / "broken.txt" for run in (folder, whole))
    if first.exists() != second.exists() or (first.exists() and first.read_text() != second.read_text()):
        yield "broken.txt"
    first, second = ({path.name: path.read_bytes() for path in (run / "export").iterdir()} for run in (folder, whole))
    yield from (f"export/{name}" for name in compare_exports(first, second, (folder.name, whole.name)))


def compare_exports(first: dict[str, bytes], second: dict[str, bytes], names: tuple[str, str]) -> Iterator[str]:
    """Names of the files of two exports that differ; of the card, times and the name of the run may."""
    for name in first.keys() | second.keys():
        if name != "README.md":
            if first.get(name) != second.get(name):
                yield name
            continue
        cards = [
            re.sub(r"[\d.]+ (minutes|hours)", "", files[name].decode()).replace(run, "run")
            for files, run in zip((first, second), names)
        ]
        if cards[0] != cards[1]:
            yield name
