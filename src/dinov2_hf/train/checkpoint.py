"""Checkpoints that a killed run continues from, bit for bit.

A checkpoint is a folder `step-00000100` with the sharded state of model and optimiser (`torch.distributed.checkpoint`),
`run.json` and the resolved `config.yaml`. It is written beside its final name and renamed, so a kill while it is being
written leaves the one before. Nothing random is stored: all of it is drawn from the seed and the step.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ..config import PretrainConfig, dotted_keys, load_saved_config, save_config, value_at
from .reader import CheckpointReader

_NAME = re.compile(r"step-(\d{8})")
_RUN_FILE = "run.json"

_MAY_DIFFER = re.compile(
    r"train\.(output_dir|log_every|checkpoint_epochs|keep_checkpoints|keep_every|max_skipped_updates"
    r"|batch_size|gradient_accumulation_steps)"  # not the global batch: check_same_run
    r"|data\.(num_workers|start_method|max_broken_share)"
    r"|model\.(attn_implementation|gradient_checkpointing|compile)"
    r"|init\.path"  # read once, at the start
    r"|(knn|hub)\..*"
)


@dataclass
class RunState:
    """What a run has to know of its past besides tensors."""

    step: int
    """Updates made."""
    global_batch_size: int
    head_warmup_steps: int = 0
    """Updates at the start in which the heads alone are trained."""
    counters: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Updates skipped because the gradient was not finite: in all, and in a row."""
    scaler: dict | None = None
    """State of the gradient scaler, in fp16."""
    means: dict[str, list] = field(default_factory=dict)
    """`MeanMetrics.state`: of updates after the last logged one."""
    broken: list[list[str]] = field(default_factory=list)
    """Kind, name and reason of everything broken that was met, in order."""
    reads: list[int] = field(default_factory=lambda: [0, 0])
    """Images read so far, and how many of them were broken."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def step_of(checkpoint: Path) -> int:
    """The number of updates in a checkpoint's name."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def save_checkpoint(
    folder: Path,
    run: RunState,
    model: nn.Module,
    optimizer: Optimizer,
    config: PretrainConfig,
    accelerator: Accelerator,
) -> Path:
    """Writes the state after `run.step` updates.

    Collective: call on all ranks, with the model and optimiser as they were before accelerate wrapped them.

    Raises:
        OSError: the disk is full or the folder cannot be written; the checkpoints before are as they were.
    """
    final = folder / f"step-{run.step:08d}"
    partial = folder / f"writing-{run.step:08d}"
    replaced = folder / f"writing-{run.step:08d}-replaced"  # renamed first: half of one would look whole
    error = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        with _without_warnings():
            dcp.save(state, checkpoint_id=partial, no_dist=not dist.is_initialized())
        if accelerator.is_main_process:
            save_config(config, partial / "config.yaml")
            (partial / _RUN_FILE).write_text(json.dumps(asdict(run)))
            if final.exists():  # the run went back to an older checkpoint and writes this one anew
                final.rename(replaced)
            partial.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, CheckpointException) as caught:
        error = caught
    if error is not None:
        shutil.rmtree(partial, ignore_errors=True)
        good = find_checkpoints(folder)
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise OSError(
            f"the checkpoint after update {run.step} cannot be written to {folder}: {_cause(error)}; {last}; "
            "make room or mend the folder and launch again, the run then continues from there"
        ) from error
    accelerator.wait_for_everyone()
    return final


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes what a run that was killed left of the checkpoint that it was writing."""
    for partial in folder.glob("writing-*"):
        shutil.rmtree(partial, ignore_errors=True)


def prune_checkpoints(folder: Path, keep: int, keep_every: int, checkpoint_steps: int) -> None:
    """Removes old checkpoints, of one each `checkpoint_steps`: not the newest `keep`, nor every `keep_every`-th."""
    for old in find_checkpoints(folder)[:-keep]:
        if not keep_every or step_of(old) % (keep_every * checkpoint_steps):
            shutil.rmtree(old)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, config: PretrainConfig, global_batch_size: int
) -> RunState:
    """Loads a checkpoint into model and optimiser. Collective: call on all ranks.

    Raises:
        ValueError: the run that wrote it had another config or global batch.
        FileNotFoundError: `path` is not a checkpoint.
    """
    if not (path / _RUN_FILE).is_file():
        raise FileNotFoundError(f"{path} is not a checkpoint; give a folder such as checkpoints/step-00000100")
    run = RunState(**json.loads((path / _RUN_FILE).read_text()))
    check_same_run(path, config, run.global_batch_size, global_batch_size)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    with _without_warnings():
        dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return run


def read_model_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of the model in a checkpoint, whole: `student.backbone.…`, `teacher.dino_head.…`.

    On the device `meta` only their shapes and types are read.
    """
    prefix = "model."
    reader = CheckpointReader(path)
    saved = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for name, entry in saved.items()
        if name.startswith(prefix) and hasattr(entry, "size")
    }
    if device != "meta":
        with _without_warnings():
            dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def check_same_run(path: Path, config: PretrainConfig, saved_batch_size: int, global_batch_size: int) -> None:
    """Refuses to continue a checkpoint under a config that would change what the run computes."""
    saved = load_saved_config(path / "config.yaml")
    for key in dict.fromkeys([*dotted_keys(saved), *dotted_keys(config)]):  # a source of a mixture may be in one alone
        before, now = value_at(saved, key), value_at(config, key)
        if before != now and not _MAY_DIFFER.fullmatch(key) and not isinstance(before, dict):
            raise ValueError(
                f"{key}={now!r}, but {path} was written with {key}={before!r}; continue with that value, "
                "or start anew with another train.output_dir"
            )
    if saved_batch_size != global_batch_size:
        raise ValueError(
            f"the global batch is {global_batch_size} images, but {path} was written with {saved_batch_size}; "
            "set train.batch_size and train.gradient_accumulation_steps so that their product with the number of "
            "processes stays the same"
        )


@contextlib.contextmanager
def _without_warnings():
    """A single process is what `no_dist` says; torch warns of it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _cause(error: BaseException) -> BaseException:
    """What a writer said, out of what `torch.distributed.checkpoint` wraps around it."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error
