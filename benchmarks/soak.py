"""What a long run uses more and more of: memory, descriptors, threads, shared memory and disk, sampled as it trains.

    python benchmarks/soak.py                                        # an hour of a tiny run of dinov2
    python benchmarks/soak.py --objective distill_prototypes distill_features --minutes 30
    python benchmarks/soak.py --config vits14_1gpu data.train.path=/my/images

Each objective trains in processes of its own, with two data workers, checkpoints every 50 updates of which two are
kept, k-NN every 100 and a linear probe every 250, and is stopped by SIGTERM. With `--config` it is that run, until it
ends or the time is up. Prints for each quantity its slope per 1,000 updates after a warm-up with the 95 % interval, and
where the interval is above 0; metrics and logs grow by design. The interval is that of a straight line through the
means of 20 stretches of time, as neighbouring samples are not independent. `--output` takes, of each objective, the
samples (`samples.csv`), the slopes (`slopes.json`), the curves (`curves.png`) and the run. Linux only.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from dinov2_hf.config import RUNS, RunConfig, dotted_keys
from dinov2_hf.objectives import OBJECTIVES
from dinov2_hf.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tiny import TINY, write_photographs  # noqa: E402

QUANTITIES = {
    "memory": "resident memory of all processes, shared pages once, MB",
    "main_memory": "resident memory of the training process, MB",
    "shared_memory": "shared memory of all processes, MB",
    "dev_shm": "/dev/shm of the machine, MB",
    "descriptors": "open descriptors",
    "threads": "threads",
    "processes": "processes",
    "checkpoints": "disk, checkpoints, MB",
    "other_files": "disk, metrics, logs and all else of the run, MB",
}
EPOCH = 50
"""Updates of a tiny run between two checkpoints."""
CADENCE = [
    "data.num_workers=2",
    f"train.epoch_length={EPOCH}",
    "train.log_every=10",
    "train.keep_checkpoints=2",
    "knn.epochs=2",
    "evaluations.probe.epochs=5",
]
ONLY_ITS = {"distill_features": ["crops.num_local=0"], "ibot": ["ibot.separate_teacher_head=true"]}
"""Keys of a tiny run that only one objective needs."""
MOST_UPDATES = 100
"""Of a tiny run in a second; its length is chosen by it."""
STRETCHES = 20
MB = 1e6


class Slope(NamedTuple):
    """How a quantity changes in 1,000 updates; None where the samples do not say it."""

    mean: float
    slope: float | None
    low: float | None
    high: float | None

    @property
    def grows(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass
class Soak:
    """A run that is sampled.

    Args:
        folder: for the run, its log, the samples and what is found in them.
        arguments: of the command `dinov2-hf pretrain`, without the folder of the run.
        seconds: from the first logged update on.
        every: seconds between two samples.
    """

    folder: Path
    arguments: list[str]
    seconds: float
    every: float

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / "run")

    def sample(self) -> list[dict[str, float]]:
        """Trains, and returns the samples from the first logged update on.

        Raises:
            RuntimeError: the run fails, or leaves processes behind.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        command = [sys.executable, "-m", "dinov2_hf", "pretrain", *self.arguments, f"train.output_dir={self.run.path}"]
        log = self.folder / "log.txt"
        samples: list[dict[str, float]] = []
        seen: set[psutil.Process] = set()
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                start = None
                while process.poll() is None and (start is None or time.monotonic() < start + self.seconds):
                    if (updates := newest_update(self.run.metrics_file)) is not None:
                        start = start or time.monotonic()
                        tree = tree_of(process.pid)
                        seen |= set(tree)
                        taken = {"seconds": round(time.monotonic() - start, 3), "updates": updates}
                        samples.append(taken | measure(tree) | disk_of(self.run))
                    time.sleep(self.every)
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                else:  # it ended by itself: what it does at its end is no part of the curves
                    samples = [taken for taken in samples if taken["updates"] < samples[-1]["updates"]]
                status = process.wait(timeout=300)
            finally:
                process.kill()
        if status not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(f"{shlex.join(command)} ended with status {status}; its output is in {log}")
        if left := [item.pid for item in psutil.wait_procs(seen, timeout=10)[1]]:
            raise RuntimeError(f"{shlex.join(command)} left processes behind: {left}")
        return samples


def newest_update(metrics: Path) -> int | None:
    """Returns the update of the last whole line of metrics; None before there is one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(os.path.getsize(metrics) - 16_384, 0))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1])["step"] if lines else None


def tree_of(pid: int) -> list[psutil.Process]:
    """Returns a process and all that it started; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def measure(tree: list[psutil.Process]) -> dict[str, float]:
    """Returns what the processes use, the first of them the training process; those that have ended count 0."""
    found = dict.fromkeys(("memory", "main_memory", "shared_memory", "descriptors", "threads", "processes"), 0.0)
    for number, process in enumerate(tree):
        try:
            rolled = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rolled}
            descriptors, threads = process.num_fds(), process.num_threads()
        except (OSError, psutil.Error):
            continue
        found["memory"] += kilobytes["Pss"] * 1024 / MB
        found["shared_memory"] += kilobytes["Pss_Shmem"] * 1024 / MB
        found["main_memory"] += kilobytes["Rss"] * 1024 / MB if number == 0 else 0
        found["descriptors"] += descriptors
        found["threads"] += threads
        found["processes"] += 1
    return found | {"dev_shm": psutil.disk_usage("/dev/shm").used / MB}


def disk_of(run: RunFolder) -> dict[str, float]:
    """Returns the megabytes of the files of a run."""
    found = {"checkpoints": 0.0, "other_files": 0.0}
    for folder, _, files in os.walk(run.path):
        place = "checkpoints" if Path(folder).is_relative_to(run.checkpoints) else "other_files"
        for name in files:
            try:
                found[place] += os.stat(os.path.join(folder, name)).st_size / MB
            except FileNotFoundError:  # a checkpoint that the run is pruning
                continue
    return found


def slope_of(updates: np.ndarray, values: np.ndarray) -> Slope:
    """Returns the slope of a straight line through the means of stretches of the samples, both `[N]`."""
    from scipy.stats import t

    mean = float(values.mean())
    stretches = min(STRETCHES, len(values) // 2)
    if stretches < 3:
        return Slope(mean, None, None, None)
    x, y = (
        np.array([part.mean() for part in np.array_split(series.astype(float), stretches)])
        for series in (updates / 1000, values)
    )
    spread = ((x - x.mean()) ** 2).sum()
    if spread == 0:
        return Slope(mean, None, None, None)
    if np.ptp(values) == 0:
        return Slope(mean, 0.0, 0.0, 0.0)
    slope = ((x - x.mean()) * y).sum() / spread
    residual = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum() / (stretches - 2)
    margin = t.ppf(0.975, stretches - 2) * np.sqrt(residual / spread)
    return Slope(mean, float(slope), float(slope - margin), float(slope + margin))


def slopes_of(samples: list[dict[str, float]], warmup: float) -> dict[str, Slope]:
    """Returns the slope of each quantity after the first `warmup` share of the time."""
    kept = [sample for sample in samples if sample["seconds"] >= warmup * samples[-1]["seconds"]]
    updates = np.array([sample["updates"] for sample in kept])
    return {name: slope_of(updates, np.array([sample[name] for sample in kept])) for name in QUANTITIES}


def table(title: str, samples: list[dict[str, float]], slopes: dict[str, Slope]) -> str:
    """Returns the slopes as a table in Markdown."""
    first, last = samples[0], samples[-1]
    rows = [
        f"{title}: {last['updates'] - first['updates']:,.0f} updates in {last['seconds'] / 60:.1f} minutes, "
        f"{len(samples)} samples\n",
        "| | mean | per 1,000 updates | 95 % interval | |\n| --- | ---: | ---: | ---: | --- |",
    ]
    for name, found in slopes.items():
        known = found.slope is not None
        numbers = f"{found.slope:+.4f} | {found.low:+.4f} to {found.high:+.4f}" if known else "not known | "
        rows.append(f"| {QUANTITIES[name]} | {found.mean:,.1f} | {numbers} | {'grows' if found.grows else ''} |")
    return "\n".join(rows)


def draw(path: Path, title: str, samples: list[dict[str, float]], warmup: float) -> None:
    """Draws each quantity over the updates, the warm-up in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    updates = [sample["updates"] for sample in samples]
    warm = next(s["updates"] for s in samples if s["seconds"] >= warmup * samples[-1]["seconds"])
    for axes, (name, label) in zip(figure.subplots(3, 3).flat, QUANTITIES.items()):
        axes.plot(updates, [sample[name] for sample in samples], linewidth=0.8)
        axes.axvspan(updates[0], warm, color="0.9")
        axes.set_title(label, fontsize=8)
        axes.set_xlabel("updates", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def tiny_arguments(objective: str, folder: Path, seconds: float) -> list[str]:
    """Returns the arguments of a tiny run of an objective on generated photographs, with a teacher if it reads one."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    write_photographs(images)
    probe = folder / "probe.yaml"
    probe.write_text(
        f"train: {{path: {images}}}\ntest: {{path: {images}, split: train}}\n"
        "learning_rates: [0.1]\nblocks: [1]\niterations: 3\nglobal_batch: 8\nnum_workers: 0\n"
    )
    known = keys_of(objective)
    source = [f"data.train.path={images}"]
    keys = [f"objective={objective}", *(key for key in TINY if key.split("=")[0] in known), *source, *CADENCE]
    keys += [f"train.epochs={max(seconds * MOST_UPDATES / EPOCH, 5):.0f}", *ONLY_ITS.get(objective, [])]
    keys += [f"knn.reference.path={images}", f"knn.query.path={images}", "knn.query.split=train"]
    keys += ["knn.resize_size=40", "knn.crop_size=32"]
    keys += ["evaluations.probe.protocol=linear", f"evaluations.probe.config={probe}"]
    if "distill.teacher" in known:
        keys += ["model.drop_path_rate=0", f"distill.teacher={folder / 'teacher'}"]
        if not (folder / "teacher" / "export").is_dir():
            command = [sys.executable, "-m", "dinov2_hf", "pretrain", *TINY, *source]
            subprocess.run([*command, f"train.output_dir={folder / 'teacher'}"], check=True, capture_output=True)
    return keys


def keys_of(objective: str) -> set[str]:
    config: RunConfig = RUNS[objective]()
    return set(dotted_keys(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of the run that take precedence")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, help="of tiny runs (default: dinov2)")
    parser.add_argument("--config", help="a file or the name of a recipe, instead of a tiny run")
    parser.add_argument("--minutes", type=float, default=60, help="of each run, from its first update (default: 60)")
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples (default: 5)")
    parser.add_argument(
        "--warmup", type=float, default=0.2, help="share of the time that does not count (default: 0.2)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="(default: runs/soak)")
    args = parser.parse_args()
    if args.config and args.objective:
        parser.error("--objective is for tiny runs; leave it out where --config names the run")
    output = args.output.resolve()
    for name in [Path(args.config).stem] if args.config else args.objective or ["dinov2"]:
        seconds = args.minutes * 60
        given = ["--config", args.config] if args.config else tiny_arguments(name, output, seconds)
        soak = Soak(output / name, [*given, *args.keys], seconds, args.every)
        try:
            samples = soak.sample()
        except RuntimeError as error:
            raise SystemExit(f"{name}: {error}") from None
        if not samples:
            raise SystemExit(f"{name}: the run ended before its first update was logged; see {soak.folder / 'log.txt'}")
        with (soak.folder / "samples.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, samples[0])
            writer.writeheader()
            writer.writerows(samples)
        slopes = slopes_of(samples, args.warmup)
        (soak.folder / "slopes.json").write_text(
            json.dumps({quantity: found._asdict() for quantity, found in slopes.items()}, indent=2) + "\n"
        )
        draw(soak.folder / "curves.png", name, samples, args.warmup)
        print(table(name, samples, slopes) + f"\n\nCurves: {soak.folder / 'curves.png'}\n", flush=True)


if __name__ == "__main__":
    main()
