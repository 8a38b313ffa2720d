"""Checkpoints that a killed run continues from, bit for bit.

A checkpoint is a folder `step-00000100` with the sharded state of model and optimiser (`torch.distributed.checkpoint`),
`run.json` and the resolved `config.yaml`. It is written beside its final name and renamed, so a kill while it is being
written leaves the one before. Nothing random is stored: all of it is drawn from the seed and the step.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ..config import PretrainConfig, dotted_keys, load_config, save_config, value_at

_NAME = re.compile(r"step-(\d{8})")

_MAY_DIFFER = re.compile(
    r"train\.(output_dir|log_every|checkpoint_epochs|keep_checkpoints|max_skipped_updates"
    r"|batch_size|gradient_accumulation_steps)"  # not the global batch: check_same_run
    r"|data\.(num_workers|max_broken_share)"
    r"|model\.(attn_implementation|gradient_checkpointing)"
    r"|knn\..*"
)


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    config: PretrainConfig,
    global_batch_size: int,
    accelerator: Accelerator,
) -> Path:
    """Writes the state after `step` updates and removes all but the newest `train.keep_checkpoints`.

    Collective: call on all ranks, with the model and optimiser as they were before accelerate wrapped them.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f"writing-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.save(state, checkpoint_id=partial, no_dist=not dist.is_initialized())
    if accelerator.is_main_process:
        save_config(config, partial / "config.yaml")
        run = {"step": step, "global_batch_size": global_batch_size}
        (partial / "run.json").write_text(json.dumps(run))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in find_checkpoints(folder)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, config: PretrainConfig, global_batch_size: int
) -> int:
    """Loads a checkpoint into model and optimiser and returns its step. Collective: call on all ranks.

    Raises:
        ValueError: the run that wrote it had another config or global batch.
        FileNotFoundError: `path` is not a checkpoint.
    """
    if not (path / "run.json").is_file():
        raise FileNotFoundError(f"{path} is not a checkpoint; give a folder such as checkpoints/step-00000100")
    run = json.loads((path / "run.json").read_text())
    check_same_run(path, config, run["global_batch_size"], global_batch_size)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return run["step"]


def check_same_run(path: Path, config: PretrainConfig, saved_batch_size: int, global_batch_size: int) -> None:
    """Refuses to continue a checkpoint under a config that would change what the run computes."""
    saved = load_config(path / "config.yaml")
    for key in dotted_keys(config):
        before, now = value_at(saved, key), value_at(config, key)
        if before != now and not _MAY_DIFFER.fullmatch(key):
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
