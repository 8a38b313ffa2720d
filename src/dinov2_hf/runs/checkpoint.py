"""Checkpoints that a killed run continues from, on CPUs bit for bit.

A checkpoint is a folder `step-00000100` with the sharded state of model and optimiser (`torch.distributed.checkpoint`),
`run.json`, the resolved `config.yaml`, `provenance.json` and the checksums of all of them in `manifest.json`. It is
written beside its final name and renamed, so a kill while it is being written leaves the one before. Nothing random is
stored: all of it is drawn from the seed and the step.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from ..config import RunConfig, dotted_keys, load_saved_config, paths_in, same_place, save_config, value_at
from ..files import CHECKPOINTS, CONFIG_FILE, STATE_FILE, first_line, refusal_of_disk, sync
from .manifest import Manifest, list_files, write_manifest
from .metrics import current_name
from .provenance import Provenance
from .reader import CheckpointPlanner, CheckpointReader, tensors_in
from .together import on_all, on_main, rank_and_world

_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 2
"""Of what is written here. 1 is that of dinov2_hf 0.5: no manifest, no provenance."""

_MAY_DIFFER = re.compile(
    r"train\.(output_dir|log_every|checkpoint_epochs|keep_checkpoints|keep_every|max_skipped_updates"
    r"|batch_size|gradient_accumulation_steps)"  # not the global batch: check_same_run
    r"|data\.(num_workers|start_method|max_broken_share|max_broken_shards|pixel_budget)"
    r"|model\.(attn_implementation|gradient_checkpointing|compile)"
    r"|init\.(path|channels)"  # read once, at the start
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
    scaler: dict[str, Any] | None = None
    """State of the gradient scaler, in fp16."""
    means: dict[str, list[Any]] = field(default_factory=dict)
    """`MeanMetrics.state`: of updates after the last logged one."""
    broken: list[list[str]] = field(default_factory=list)
    """Kind, name and reason of everything broken that was met, in order."""
    reads: list[int] = field(default_factory=lambda: [0, 0])
    """Images read so far, and how many of them were broken."""
    listing: dict[str, dict[str, Any]] | None = None
    """What each source of images was made of: `TrainingSource.listing`; None in checkpoints of dinov2_hf 0.5."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def step_of(checkpoint: Path) -> int:
    """The number of updates in a checkpoint's name."""
    named = _NAME.fullmatch(checkpoint.name)
    assert named is not None, checkpoint
    return int(named[1])


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, whole or damaged."""
    known = (".metadata", STATE_FILE)
    return path.is_dir() and bool(_NAME.fullmatch(path.name) or any((path / name).is_file() for name in known))


def checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that `path` is, or the newest of the run that wrote into it, whole or damaged."""
    if is_checkpoint(path):
        return path
    found = find_checkpoints(path / CHECKPOINTS)
    return found[-1] if found else None


def read_state(checkpoint: Path) -> tuple[RunState, int]:
    """What `run.json` says, and the number of the format that the checkpoint has.

    Raises:
        ValueError: it is missing, cannot be read or holds something else.
    """
    try:
        given = json.loads((checkpoint / STATE_FILE).read_text())
    except FileNotFoundError:
        raise ValueError(f"{STATE_FILE} is missing") from None
    except OSError as error:
        raise ValueError(f"{STATE_FILE} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{STATE_FILE} is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError(f"{STATE_FILE} does not hold names and values")
    version = given.pop("format", 1)
    if not isinstance(version, int) or version > _FORMAT:
        raise ValueError(f"{STATE_FILE} has format {version!r}, of a newer version of dinov2_hf; install that")
    hints = get_type_hints(RunState)
    if unknown := sorted(given.keys() - hints.keys()):
        raise ValueError(f"{STATE_FILE} has the unknown key {unknown[0]!r}")
    for name in ("step", "global_batch_size"):
        if name not in given:
            raise ValueError(f"{STATE_FILE} lacks {name!r}")
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{STATE_FILE} has {name}={value!r}")
    state = RunState(**given)
    state.means = {current_name(name): value for name, value in state.means.items()}
    if state.step < 0 or len(state.counters) != 2 or len(state.reads) != 2:
        raise ValueError(f"{STATE_FILE} has step={state.step}, counters={state.counters}, reads={state.reads}")
    for name, value in state.means.items():
        count, sums = value if len(value) == 2 else (0, [])
        if not (count and sums and _fits(count, int) and _fits(sums, list[float])):
            raise ValueError(f"{STATE_FILE} has {value!r} as the sums of {name!r}")
    if odd := next((item for item in state.broken if len(item) != 3), None):
        raise ValueError(f"{STATE_FILE} has {odd!r} among what is broken")
    if (named := _NAME.fullmatch(checkpoint.name)) and int(named[1]) != state.step:
        raise ValueError(f"{STATE_FILE} is that of update {state.step}")
    return state, version


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON has a type, such as `list[float]` or `dict[str, Any] | None`."""
    if hint is Any:
        return True
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, one) for one in inside)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind is list and inside:
        return all(_fits(item, inside[0]) for item in value)
    if kind is dict and inside:
        return all(_fits(item, inside[1]) for item in value.values())
    return True


def save_checkpoint(
    folder: Path,
    run: RunState,
    model: nn.Module,
    optimizer: Optimizer,
    config: RunConfig,
    accelerator: Accelerator,
) -> Path:
    """Writes the state after `run.step` updates. Returns when all of it is on the disk.

    Collective: call on all ranks, with the model and optimiser as they were before accelerate wrapped them.

    Raises:
        OSError: the disk is full or the folder cannot be written; the checkpoints before are as they were.
    """
    final = folder / f"step-{run.step:08d}"
    partial = folder / f"writing-{run.step:08d}"
    try:
        on_main(lambda: _begin(partial))
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        with _without_warnings():
            save(state, checkpoint_id=partial, no_dist=not dist.is_initialized())
        provenance = Provenance.of(cast(dict[str, Tensor], model_state), accelerator)
        shards = on_all(lambda: list_files(partial.glob(f"__{rank_and_world()[0]}_*")))
        files = {name: entry for shard in shards for name, entry in shard.items()}
        on_main(lambda: _finish(partial, final, run, config, provenance, files))
    except (OSError, CheckpointException) as error:
        cause = _cause(error)
        reason = refusal_of_disk(cause, partial) or first_line(cause)
        shutil.rmtree(partial, ignore_errors=True)
        good = find_checkpoints(folder)
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise OSError(
            f"the checkpoint after update {run.step} cannot be written to {folder}: {reason}; {last}; "
            "make room or repair the folder and launch again, the run then continues from there"
        ) from error
    return final


def _begin(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _finish(
    partial: Path, final: Path, run: RunState, config: RunConfig, provenance: Provenance, files: Manifest
) -> None:
    """Completes what all processes have written, and gives it its name."""
    save_config(config, partial / CONFIG_FILE)
    (partial / STATE_FILE).write_text(json.dumps({"format": _FORMAT, **asdict(run)}))
    written = [partial / CONFIG_FILE, partial / STATE_FILE, provenance.write(partial)]
    for path in written:
        sync(path)
    write_manifest(partial, files | list_files([*written, partial / ".metadata"]))
    sync(partial)
    replaced = partial.with_name(f"{partial.name}-replaced")  # renamed first: half of one would look whole
    if final.exists():  # the run went back to an older checkpoint and writes this one again
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint. A kill leaves nothing under its name, as it is renamed first."""
    leaving = checkpoint.with_name(checkpoint.name.replace("step-", "removing-"))
    shutil.rmtree(leaving, ignore_errors=True)  # of a run that was killed here and came to this update again
    checkpoint.rename(leaving)
    shutil.rmtree(leaving)


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes what a run that was killed left of the checkpoints that it was writing or removing."""
    for partial in [*folder.glob("writing-*"), *folder.glob("removing-*")]:
        shutil.rmtree(partial, ignore_errors=True)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, config: RunConfig, global_batch_size: int
) -> RunState:
    """Loads a checkpoint that `integrity` has found whole into model and optimiser. Collective: call on all ranks.

    Raises:
        ValueError: the run that wrote it had another config or global batch, or its tensors do not fit the model.
    """
    run, _ = read_state(path)
    check_same_run(path, config, run.global_batch_size, global_batch_size)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    _load(state, path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return run


def _load(state: dict[str, Any], path: Path, no_dist: bool) -> None:
    """Fills the tensors of `state`.

    Raises:
        ValueError: tensors that are missing, of another shape or damaged.
    """
    try:
        with _without_warnings():
            load(state, storage_reader=CheckpointReader(path), planner=CheckpointPlanner(), no_dist=no_dist)
    except CheckpointException as error:
        raise ValueError(
            f"the checkpoint {path} cannot be loaded: {first_line(_cause(error))}; take another one"
        ) from None


def read_model_tensors(path: Path, device: str = "cpu", place: str = "") -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint, whole: `student.backbone.…`, `teacher.dino_head.…`.

    Args:
        device: on `meta` only their shapes and types are read.
        place: only those whose names begin with it, such as `teacher.`; others are not read.

    Raises:
        ValueError: the metadata or tensors are damaged.
    """
    prefix = "model."
    saved = tensors_in(CheckpointReader(path).read_metadata())
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for name, entry in saved.items()
        if name.startswith(prefix + place)
    }
    if state and device != "meta":
        _load(state, path, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def check_same_run(path: Path, config: RunConfig, saved_batch_size: int, global_batch_size: int) -> None:
    """Refuses to continue a checkpoint under a config that would change what the run computes."""
    saved = load_saved_config(path / CONFIG_FILE)
    paths = {key for key, *_ in (*paths_in(saved), *paths_in(config))}
    for key in dict.fromkeys([*dotted_keys(saved), *dotted_keys(config)]):  # a source of a mixture may be in one only
        before, now = value_at(saved, key), value_at(config, key)
        if before == now or (key in paths and same_place(before, now)):
            continue
        if not _MAY_DIFFER.fullmatch(key) and not isinstance(before, dict):
            raise ValueError(
                f"{key}={now!r}, but {path} was written with {key}={before!r}; continue with that value, "
                "or start again with another train.output_dir"
            )
    if saved_batch_size != global_batch_size:
        raise ValueError(
            f"the global batch is {global_batch_size} images, but {path} was written with {saved_batch_size}; "
            "set train.batch_size and train.gradient_accumulation_steps so that their product with the number of "
            "processes stays the same"
        )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """A single process is what `no_dist` says; torch warns of it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _cause(error: BaseException) -> BaseException:
    """What a writer said, out of what `torch.distributed.checkpoint` wraps around it."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error
