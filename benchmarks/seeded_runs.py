"""Shows that a refactoring left seeded training unchanged to the last bit.

    python benchmarks/seeded_runs.py --source OLD_CHECKOUT --output before.json
    python benchmarks/seeded_runs.py --output after.json                # of this checkout
    python benchmarks/seeded_runs.py --compare before.json after.json   # --only NAME ...: of these runs

Trains tiny runs of all kinds on the CPU with the examples and the package of a checkout, and records for each run all
metrics (times aside), the exported configs, and SHA-256 of every tensor of its exports and checkpoints. The comparison
prints a line a run, and ends with status 1 where values differ. Metrics of 0.5 are compared under their new names
(`dino_global` as `loss/dino_global`). Both recordings have to be of the same machine and the same versions of torch.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from safetensors.torch import load_file

TIMES = {"images_per_second"}
TERMS = "dino_global|dino_local|ibot|koleo|cls_cosine|cls_smooth_l1|patch_cosine|patch_smooth_l1"
"""Metrics that 0.5 logs without `loss/`."""
EXPORTED = ("config.json", "preprocessor_config.json")
TIMEOUT = 300
"""Seconds of one launch."""

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,DINOHead",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

BACKBONE = {
    "model.preset": "tiny",
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.patch_size": 8,
    "model.num_register_tokens": 0,
    "model.drop_path_rate": 0.0,
    "model.layerscale_value": 0.1,
}
COMMON = BACKBONE | {
    "crops.global_size": 32,
    "crops.local_size": 16,
    "crops.num_local": 2,
    "optim.base_lr": 0.02,
    "optim.warmup_epochs": 0.5,
    "data.num_workers": 0,
    "train.batch_size": 4,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.precision": "fp32",
}
SIZES = {"num_prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8}
HEADS = {f"dino.{name}": size for name, size in SIZES.items()} | {
    "optim.freeze_last_layer_epochs": 0.4,
    "teacher.warmup_temp_epochs": 1,
}
SEPARATE = {"ibot.separate_head": True} | {f"ibot.{name}": size - 4 for name, size in SIZES.items()}
PRETRAIN = COMMON | HEADS
REGISTERS = {"model.num_register_tokens": 2}
KNN = {
    "knn.reference.path": "IMAGES",
    "knn.query.path": "IMAGES",
    "knn.query.split": "train",
    "knn.resize_size": 32,
    "knn.crop_size": 32,
    "knn.epochs": 1,
    "knn.k": 3,
}
PROTOTYPES = PRETRAIN | SEPARATE | {"distill.teacher": "RUNS/softmax/export", "distill.objective": "prototypes"}
FURTHER = {key.replace("model", "students.tiny", 1): value for key, value in BACKBONE.items()}
FURTHER |= {"students.tiny.hidden_size": 16, "students.tiny.num_hidden_layers": 1}


@dataclass(frozen=True)
class Run:
    """A run of the list; `RUNS` and `IMAGES` in its values stand for folders."""

    values: dict[str, Any] = field(default_factory=dict)
    """Of its config, by dotted key as in 0.5."""
    needs: tuple[str, ...] = ()
    """Runs whose results it reads."""
    example: str = "pretrain"
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    resumes: str | None = None
    """A run that it repeats from the middle checkpoint; all else is as in that run."""


RUNS = {
    "sinkhorn": Run(PRETRAIN | KNN),
    "softmax": Run(
        PRETRAIN
        | SEPARATE
        | REGISTERS
        | {
            "teacher.centering": "softmax",
            "model.drop_path_rate": 0.3,
            "optim.layerwise_decay": 0.8,
            "train.gradient_accumulation_steps": 2,
            "train.log_every": 2,
            "train.precision": "bf16",
        }
    ),
    "swiglu": Run(
        PRETRAIN
        | {
            "model.use_swiglu_ffn": True,
            "model.patch_size": 16,
            "model.drop_path_uniform": False,
            "model.drop_path_rate": 0.2,
            "koleo.distributed": True,
            "colors.mean": [0.5, 0.4, 0.3],
            "colors.std": [0.3, 0.25, 0.2],
        }
    ),
    "continued_from_export": Run(
        PRETRAIN
        | {"init.path": "RUNS/sinkhorn/export", "init.heads": False, "init.head_warmup_epochs": 0.4, "train.seed": 1},
        needs=("sinkhorn",),
    ),
    "continued_from_run": Run(
        PRETRAIN
        | SEPARATE
        | REGISTERS
        | {"init.path": "RUNS/softmax", "teacher.centering": "softmax", "train.seed": 1},
        needs=("softmax",),
    ),
    "resized": Run(
        PRETRAIN | {"init.path": "RUNS/sinkhorn/export", "crops.global_size": 48, "crops.local_size": 24},
        needs=("sinkhorn",),
    ),
    "prototypes": Run(PROTOTYPES | FURTHER | KNN, needs=("softmax",), example="distill"),
    "features": Run(
        COMMON
        | FURTHER
        | {
            "crops.num_local": 0,
            "students.tiny.patch_size": 4,
            "distill.objective": "features",
            "distill.teacher": "RUNS/swiglu/export",
        },
        needs=("swiglu",),
        example="distill",
    ),
    "resumed": Run(resumes="softmax"),
    "resumed_prototypes": Run(resumes="prototypes"),
    "ddp": Run(PRETRAIN | SEPARATE | {"koleo.distributed": True}, processes=2),
    "fsdp2": Run(PRETRAIN | SEPARATE | KNN, processes=2, environment=FSDP2),
    "ddp_prototypes": Run(
        PROTOTYPES | {"distill.teacher": "RUNS/softmax"}, needs=("softmax",), example="distill", processes=2
    ),
    "fsdp2_prototypes": Run(
        PROTOTYPES | FURTHER, needs=("softmax",), example="distill", processes=2, environment=FSDP2
    ),
}


def with_needed(names: list[str]) -> list[str]:
    """`names` and all runs that they read or repeat, in the order of the list."""
    wanted = set(names)
    for name in reversed(RUNS):
        if name in wanted:
            run = RUNS[name]
            wanted |= {*run.needs, *filter(None, [run.resumes])}
    return [name for name in RUNS if name in wanted]


def write_images(folder: Path) -> Path:
    """Writes 24 images of 40 x 48 pixels in a folder for each of two classes."""
    rng = np.random.default_rng(0)
    for index in range(24):
        name = ("stripes", "blobs")[index % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (5, 6, 3) if name == "blobs" else (10, 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / name / f"{index:02}.png")
    return folder


class Recorder:
    """Trains runs with the package of a checkout and records what they leave.

    Args:
        source: the checkout.
        folder: for images and runs.
        updates: of a run, even.
        threads: of a run, divided among its processes.

    Raises:
        ValueError: `source` is not a checkout, or Python imports the package from elsewhere.
    """

    def __init__(self, source: Path, folder: Path, updates: int, threads: int) -> None:
        self.source, self.folder, self.updates, self.threads = source, folder, updates, threads
        self.runs = folder / "runs"
        self.images = write_images(folder / "images")
        self.environment = os.environ | {
            "PYTHONPATH": str(source / "src"),
            "ACCELERATE_USE_CPU": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_DYNAMIC": "false",
            "MKL_DYNAMIC": "false",
            "MPLBACKEND": "Agg",
        }
        find = "import importlib.util as u; spec = u.find_spec('dinov2_hf'); print(spec and spec.origin)"
        command = [sys.executable, "-c", find]
        found = subprocess.run(command, capture_output=True, text=True, env=self.environment).stdout.strip()
        if not Path(found).is_relative_to(source / "src"):
            raise ValueError(f"--source={source}: Python takes dinov2_hf from {found}; give the root of a checkout")

    def record(self, name: str) -> dict[str, Any]:
        """Trains a run and reads what it left; only `failed`, with the last lines printed, where it ends badly."""
        run = RUNS[name]
        what = RUNS[run.resumes] if run.resumes else run
        for _ in range(what.processes):  # a thread of gloo sometimes aborts a process at its end: try again
            shutil.rmtree(self.runs / name, ignore_errors=True)
            if run.resumes:
                self._copy_half(run.resumes, name)
            code, errors = self._launch(what, self.runs / name)
            if code == 0:
                return read_run(self.runs / name, self.folder)
        return {"failed": [f"exit status {code}", *errors.strip().splitlines()[-8:]]}

    def _copy_half(self, before: str, name: str) -> None:
        """Copies a finished run as it was when a kill took it shortly before its last checkpoint."""
        shutil.copytree(self.runs / before, self.runs / name)
        shutil.rmtree(sorted((self.runs / name / "checkpoints").glob("step-*"))[-1])
        for export in (self.runs / name).glob("export*"):
            shutil.rmtree(export)

    def _launch(self, run: Run, output: Path) -> tuple[int | None, str]:
        """Returns the exit status, None of a launch that takes too long, and the standard error."""
        config: dict[str, Any] = {}
        for key, value in run.values.items():
            if isinstance(value, str):
                value = value.replace("RUNS", str(self.runs)).replace("IMAGES", str(self.images))
            *sections, last = key.split(".")
            table = config
            for section in sections:
                table = table.setdefault(section, {})
            table[last] = value
        config["data"]["train"] = {"path": str(self.images)}
        config["train"] |= {"output_dir": str(output), "epoch_length": self.updates // 2}
        path = self.folder / f"{output.name}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML; keys of 0.5 in a file are translated where they changed
        command = [sys.executable]
        if run.processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.processes}"]
        command += [str(self.source / "examples" / f"{run.example}.py"), "--config", str(path)]
        threads = {"OMP_NUM_THREADS": str(max(self.threads // run.processes, 1))}
        environment = self.environment | threads | run.environment
        with (self.folder / f"{output.name}.txt").open("w+") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
            code = None
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(TIMEOUT)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers of a launcher that hangs
            errors.seek(0)
            return code, errors.read()


def read_run(output: Path, folder: Path) -> dict[str, Any]:
    """Metrics, exports and checkpoints in a run's folder; paths in `folder` are written relative to it."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    configs, exports, checkpoints, weights = {}, {}, {}, {}
    for export in sorted(output.glob("export*")):
        for name in EXPORTED:
            text = (export / name).read_text().replace(str(folder), "")
            configs[f"{export.name}/{name}"] = json.loads(text)
        for path in sorted(export.glob("*.safetensors")):
            exports[f"{export.name}/{path.name}"] = digests(load_file(path))
    for checkpoint in sorted((output / "checkpoints").glob("step-*")):
        checkpoints[checkpoint.name] = digests(read_checkpoint(checkpoint))
        if (path := checkpoint / "provenance.json").is_file():  # not in 0.5
            weights[checkpoint.name] = json.loads(path.read_text())["weights"]
    return {
        "metrics": [{name: line[name] for name in line if name not in TIMES} for line in lines],
        "configs": configs,
        "exports": exports,
        "checkpoints": checkpoints,
        "weights": weights,
    }


def read_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of model and optimiser, whole."""
    entries = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if hasattr(entry, "size")
    }
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of type, shape and bytes of each tensor."""
    found = {}
    for name, tensor in sorted(tensors.items()):
        digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found


def new_name(metric: str) -> str:
    """`loss/tiny.ibot` for `tiny.ibot`; other names stay."""
    return re.sub(rf"^((?:\w+\.)?(?:{TERMS}))$", r"loss/\1", metric)


def compare_runs(one: dict[str, Any], other: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two records of a run, and what only one of them has, a line each."""
    if failed := [side for side, record in (("A", one), ("B", other)) if "failed" in record]:
        return [f"failed in {' and '.join(failed)}"], []
    different, notes = _compare_metrics(one["metrics"], other["metrics"])
    for kind in ("configs", "exports"):
        different += _compare_files(one[kind], other[kind])
    if one["checkpoints"].keys() != other["checkpoints"].keys():
        different.append(f"checkpoints: {', '.join(one['checkpoints'])} and {', '.join(other['checkpoints'])}")
    for name in one["checkpoints"].keys() & other["checkpoints"].keys():
        before, now = one["checkpoints"][name], other["checkpoints"][name]
        if Counter(before.values()) != Counter(now.values()):
            different += _compare_files({name: before}, {name: now})
        elif before != now:
            notes.append(f"{name}: the same tensors under other names")
        elif name in one["weights"].keys() & other["weights"].keys():
            if one["weights"][name] != other["weights"][name]:
                different.append(f"{name}: weights in provenance.json")
    return different, notes


def _compare_metrics(one: list[dict], other: list[dict]) -> tuple[list[str], list[str]]:
    if len(one) != len(other):
        return [f"metrics: {len(one)} and {len(other)} lines"], []
    before, now = (
        [{new_name(name): value for name, value in line.items()} for line in lines] for lines in (one, other)
    )
    different = [
        f"metrics, update {a['step']}: {name} {a[name]} and {b[name]}"
        for a, b in zip(before, now)
        for name in a
        if name in b and a[name] != b[name]
    ]
    missing, added = (
        sorted({name for a, b in zip(first, second) for name in a.keys() - b.keys()})
        for first, second in ((before, now), (now, before))
    )
    different += [f"metrics: {name} is missing in B" for name in missing if name.startswith("loss")]
    notes = [f"only in {side}: {', '.join(names)}" for side, names in (("A", missing), ("B", added)) if names]
    return different, notes


def _compare_files(one: dict[str, dict], other: dict[str, dict]) -> list[str]:
    """What differs in files that hold names and values."""
    different = [f"{name} is only in {'A' if name in one else 'B'}" for name in sorted(one.keys() ^ other.keys())]
    for file in one.keys() & other.keys():
        before, now = one[file], other[file]
        names = before.keys() | now.keys()
        odd = sorted(name for name in names if name not in before or name not in now or before[name] != now[name])
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            different.append(f"{file}: {len(odd)} of {len(names)} differ: {', '.join(odd[:3])}{more}")
    return different


def compare(one: dict[str, Any], other: dict[str, Any], shown: int = 8) -> bool:
    """Prints for each run whether two recordings are equal, and returns whether all are."""
    equal = one["runs"].keys() == other["runs"].keys()
    for key in sorted(one["settings"].keys() | other["settings"].keys()):
        if one["settings"].get(key) != other["settings"].get(key):
            print(f"{key}: {one['settings'].get(key)} in A, {other['settings'].get(key)} in B")
    for name in [*one["runs"], *(other["runs"].keys() - one["runs"].keys())]:
        if name not in one["runs"] or name not in other["runs"]:
            print(f"{name}: only in {'A' if name in one['runs'] else 'B'}")
            continue
        different, notes = compare_runs(one["runs"][name], other["runs"][name])
        equal = equal and not different
        more = [f"and {len(different) - shown} more"] if len(different) > shown else []
        print("\n    ".join([f"{name}: {'DIFFERENT' if different else 'equal'}", *different[:shown], *more, *notes]))
    print(f"the recordings {'are equal' if equal else 'differ'}")
    return equal


def settings(updates: int, threads: int) -> dict[str, Any]:
    """What decides the last bits of a recording, apart from the checkout."""
    names = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow")
    return {
        "updates": updates,
        "threads": threads,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1], help="checkout (default: this one)")
    parser.add_argument("--output", type=Path, help="file of the recording (JSON)")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=f"of runs: {', '.join(RUNS)}")
    parser.add_argument("--updates", type=int, default=6, help="of a run, an even number (default: 6)")
    parser.add_argument("--threads", type=int, default=2, help="of a run (default: 2)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two recordings")
    args = parser.parse_args()
    if args.compare:
        one, other = (json.loads(path.read_text()) for path in args.compare)
        for recording in (one, other) if args.only else ():
            recording["runs"] = {name: record for name, record in recording["runs"].items() if name in args.only}
        raise SystemExit(not compare(one, other))
    if args.output is None:
        parser.error("--output is missing: the file of the recording")
    if args.updates < 2 or args.updates % 2:
        parser.error(f"--updates={args.updates} is not an even number above 0; a checkpoint lies in the middle")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    with tempfile.TemporaryDirectory(prefix="seeded_runs-") as folder:
        try:
            recorder = Recorder(args.source.resolve(), Path(folder).resolve(), args.updates, args.threads)
        except ValueError as error:
            parser.error(str(error))
        records, start = {}, time.monotonic()
        for name in with_needed(args.only or list(RUNS)):
            begin = time.monotonic()
            needed = [other for other in with_needed([name])[:-1] if "failed" in records[other]]
            records[name] = {"failed": [f"it needs {', '.join(needed)}"]} if needed else recorder.record(name)
            failed = "\n    ".join(["FAILED", *records[name]["failed"]]) if "failed" in records[name] else "recorded"
            print(f"{name}: {failed}, {time.monotonic() - begin:.0f} s", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    recording = {"settings": settings(args.updates, args.threads), "runs": records}
    args.output.write_text(json.dumps(recording, indent=1) + "\n")
    bad = sum("failed" in record for record in records.values())
    print(f"{len(records)} runs in {time.monotonic() - start:.0f} s, {bad} failed: {args.output}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
