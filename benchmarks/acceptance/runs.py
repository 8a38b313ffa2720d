"""Whole runs in processes of their own: killed and continued, sharded and replicated."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dinov2_hf.config import load_config
from dinov2_hf.train import Trainer

from .context import Context, rounded
from .machine import on_cuda, synchronize
from .numerics import CUBLAS_WORKSPACE
from .processes import group_environment, start, wait
from .setups import TINY, photographs, precision, prepare

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,DINOHead",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
_CHECKPOINTED = ("model.gradient_checkpointing=true",)
SHARDED = {
    "fsdp2": (FSDP2, ()),
    "ddp": ({}, ()),
    "fsdp2, checkpointed": (FSDP2, _CHECKPOINTED),
    "fsdp2, offloaded": (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, ()),
    "fsdp2, fp16": (FSDP2, ("train.precision=fp16",)),
    "fsdp2, accumulated": (FSDP2, ("train.gradient_accumulation_steps=2",)),
    "fsdp2, checkpointed and compiled": (FSDP2, (*_CHECKPOINTED, "model.compile=true")),
}
"""Environment of accelerate, and keys of the run."""
_MARGIN = 5
"""Seconds before the section is cut, in which its runs are ended and reported."""


@dataclass(frozen=True)
class Run:
    """A training run in a process, or one of several."""

    overrides: tuple[str, ...]
    answer: str
    """File that takes what the run says at its end, with the weights beside it."""
    until: int | None = None
    """The process kills itself after so many updates."""
    deterministic: bool = False


def train(run: Run) -> None:
    """Trains to the end, or kills this process on the way."""
    if run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        for switch in ("flash", "cudnn", "mem_efficient"):
            getattr(torch.backends.cuda, f"enable_{switch}_sdp")(False)
    config = load_config(None, list(run.overrides))
    trainer = Trainer.from_config(config, prepare(config))
    next_batch = trainer._next_batch

    def ended(*arguments):
        if trainer.step == run.until:
            synchronize()
            os.kill(os.getpid(), signal.SIGKILL)
        return next_batch(*arguments)

    trainer._next_batch = ended
    first, started = trainer.step, time.perf_counter()
    trainer.run()
    synchronize()
    seconds = time.perf_counter() - started
    state = trainer.objective.state_dict()
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}
    if trainer.accelerator.is_main_process:
        save_file({name: value.cpu().clone().contiguous() for name, value in whole.items()}, weights_of(run))
        said = {
            "from": first,
            "to": trainer.step,
            "seconds": rounded(seconds),
            "wrapped": type(trainer.objective).__name__,
        }
        if on_cuda():
            said["peak_gb"] = rounded(torch.cuda.max_memory_allocated() / 1e9)
        Path(run.answer).write_text(json.dumps(said))


def weights_of(run: Run) -> Path:
    return Path(run.answer).with_suffix(".safetensors")


@dataclass(frozen=True)
class Job:
    """A run, under `torch.distributed` where `processes` is not 0, with what accelerate reads."""

    run: Run
    processes: int = 0
    environment: dict[str, str] = field(default_factory=dict)


def launch(context: Context, jobs: list[Job]) -> list[list[int | None]]:
    """Runs jobs side by side and returns the exit codes of their processes."""
    started = []
    for job in jobs:
        base = job.environment | ({} if on_cuda() else {"ACCELERATE_USE_CPU": "1"})
        base |= {"CUBLAS_WORKSPACE_CONFIG": CUBLAS_WORKSPACE} if job.run.deterministic else {}
        places = group_environment(job.processes) if job.processes else [{}]
        log = context.output / "log.txt"
        started.append([start(train, job.run, log=log, environment=base | place) for place in places])
    return [wait(processes, max(context.left - _MARGIN, 0)) for processes in started]


def overrides_of(context: Context, folder: Path, images: Path, updates: int, *further: str) -> tuple[str, ...]:
    every = context.size(4, 2) / updates
    size = context.size(("model.preset=small", "dino.num_prototypes=8192", "ibot.num_prototypes=8192"), TINY)
    return (
        *(f"data.train.path={images}", f"data.num_workers={context.size(2, 1)}", f"train.output_dir={folder}"),
        *("train.epochs=1", f"train.epoch_length={updates}", f"train.checkpoint_epochs={every}", "train.log_every=1"),
        *("optim.warmup_epochs=0.1", "teacher.warmup_temp_epochs=0", "optim.freeze_last_layer_epochs=0"),
        *("ibot.separate_head=true", f"train.batch_size={context.size(16, 4)}", f"train.precision={precision()}"),
        *("train.gradient_accumulation_steps=1", *size, "model.drop_path_rate=0.3", *further),
    )


def resume(context: Context) -> None:
    """Killed twice and continued, against two undisturbed runs."""
    images, updates = _images(context), context.size(12, 4)
    first_kill, second_kill = context.size((6, 10), (1, 3))
    for deterministic in (True, False) if on_cuda() else (False,):
        runs = {}
        for name in ("first", "second", "killed"):
            folder = context.work / f"resume-{name}-{deterministic}"
            overrides = overrides_of(context, folder, images, updates)
            runs[name] = Run(overrides, f"{folder}.json", deterministic=deterministic)
        killed = runs["killed"]
        whole = [Job(runs["first"]), Job(runs["second"]), Job(replace(killed, until=first_kill))]
        codes = launch(context, whole) + launch(context, [Job(replace(killed, until=second_kill))])
        codes += launch(context, [Job(killed)])
        with context.case("runs", deterministic=deterministic, codes=_listed(codes)) as row:
            states = {name: load_file(weights_of(run)) for name, run in runs.items()}
            row |= {"continued_from": _said(killed)["from"], "of": len(states["first"])}
            for name in ("second", "killed"):
                off = {key: (value - states[name][key]).abs().max().item() for key, value in states["first"].items()}
                row[f"{name}_differing"] = sum(value != 0 for value in off.values())
                row[f"{name}_largest"] = rounded(max(off.values()))
            if deterministic or not on_cuda():
                row["passed"] = row["killed_differing"] == 0


def sharded(context: Context) -> None:
    """FSDP2 and DDP under `torch.distributed`, killed before the last update and continued: on one card, and on all."""
    images, updates = _images(context), context.size(6, 3)
    counts = sorted({1, min(torch.cuda.device_count(), 8)}) if on_cuda() else [2]
    names = [name for name in SHARDED if on_cuda() or name in ("fsdp2", "ddp")]
    for count in counts:
        for some in (names[:4], names[4:]):  # side by side: starting takes most of the time
            jobs = {}
            for name in some:
                environment, further = SHARDED[name]
                folder = context.work / f"sharded-{count}-{name.replace(', ', '-').replace(' ', '-')}"
                run = Run(overrides_of(context, folder, images, updates, *further), f"{folder}.json")
                jobs[name] = Job(run, count, environment)
            killed = launch(context, [replace(job, run=replace(job.run, until=updates - 1)) for job in jobs.values()])
            codes = launch(context, list(jobs.values()))
            for (name, job), *ended in zip(jobs.items(), killed, codes):
                with context.case("runs", case=name, processes=count, codes=_listed(ended)) as row:
                    row |= _said(job.run)
                    row["passed"] = row["from"] > 0 and row["to"] == updates


def _said(run: Run) -> dict:
    return json.loads(Path(run.answer).read_text())


def _listed(codes: list[list[int | None]]) -> str:
    """Exit codes of groups of processes; `cut` for one that was killed at the limit."""
    groups = [" ".join("cut" if code is None else str(code) for code in group) for group in codes]
    return ", ".join(groups)


def _images(context: Context) -> Path:
    return photographs(context, "few", context.size(64, 8), *context.size((320, 256), (64, 48)))
