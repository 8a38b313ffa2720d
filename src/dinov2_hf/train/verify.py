"""A stretch of a run trained again from one of its checkpoints, compared to the bit with the next one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ..config import RunConfig, load_saved_config
from ..files import CONFIG_FILE
from ..runs import RunFolder
from ..runs.checkpoint import read_model_tensors, read_state, step_of
from ..runs.integrity import damage_on_all
from ..runs.provenance import Provenance, combined, digest_of, digests_of, listing_changes
from ..runs.together import on_main
from .accelerator import build_accelerator
from .fit import Trainer


@dataclass
class Replay:
    """What came of training a stretch again."""

    first: Path
    last: Path
    """The checkpoints at its ends."""
    expected: str
    """Digest of the weights in `last`."""
    found: str
    """Digest of the weights that were trained here."""
    differences: list[str] = field(default_factory=list)
    """What differs in weights, data, code and environment, where the digests do."""

    @property
    def equal(self) -> bool:
        return self.expected == self.found

    def describe(self) -> str:
        """The verdict and what it rests on, as lines."""
        lines = [f"weights in {self.last.name}: {self.expected}", f"trained here:            {self.found}"]
        updates = f"updates {step_of(self.first) + 1} to {step_of(self.last)}"
        if self.equal:
            return "\n".join([*lines, f"equal: {updates} give the weights of the checkpoint, bit for bit"])
        told = self.differences[1:] or [
            "nothing that the checkpoint records: see docs/distributed.md for what else can"
        ]
        lines.append(f"different: {updates} do not give the weights of the checkpoint; {self.differences[0]}")
        return "\n".join([*lines, "What differs in data, code and environment:", *(f"  {line}" for line in told)])


def verify_run(run: Path, first: int | None = None, last: int | None = None) -> Replay:
    """Trains a stretch of a run again and compares the weights at its end. Writes nothing into the run. Collective.

    Args:
        run: output folder of a run.
        first: update of the checkpoint to start from; default: the oldest that is kept.
        last: update of the checkpoint to compare with; default: the next one that is kept.

    Raises:
        FileNotFoundError: there are no such checkpoints.
        ValueError: a checkpoint is damaged, the number of processes is not that of the run, or what the run reads
            (images, a teacher) cannot be read.
    """
    start, end = on_main(lambda: _choose(run, first, last))
    for checkpoint in (start, end):
        if damage := damage_on_all(checkpoint):
            raise ValueError(f"the checkpoint {checkpoint} is damaged: {damage}; verify between two others")
    config = load_saved_config(start / CONFIG_FILE)
    then = _provenance(start)
    with tempfile.TemporaryDirectory(prefix="dinov2-hf-verify-") as scratch:
        config.train.output_dir = scratch
        accelerator = build_accelerator(config.train)
        _require_processes(start, config, then, accelerator)
        if then and accelerator.device.type == "cpu":
            torch.set_num_threads(int(then.environment["threads"]))  # sums depend on it in the last bits
        trainer = Trainer.from_config(config, accelerator, resume=str(start.absolute()))
        expected, found = _expected_digest(end), _train(trainer, step_of(end))
    replay = Replay(start, end, expected, found)
    if not replay.equal:
        replay.differences = [
            *_different_tensors(trainer, end),
            *listing_changes(read_state(start)[0].listing, trainer.source.listing()),
            *(_provenance(end) or Provenance("", {}, {})).differences(Provenance.of({}, accelerator)),
        ]
    return replay


def _choose(run: Path, first: int | None, last: int | None) -> tuple[Path, Path]:
    found = {step_of(path): path for path in RunFolder(run).find_checkpoints()}
    if len(found) < 2:
        raise FileNotFoundError(
            f"{run} has {len(found)} checkpoint{'s' * (len(found) != 1)} and a stretch lies between two; "
            "give the output folder of a run, and keep more with train.keep_checkpoints or train.keep_every"
        )
    kept = ", ".join(map(str, found))
    start = min(found) if first is None else first
    if start not in found:
        raise FileNotFoundError(f"--from {start}: {run} has no checkpoint after that update; it has {kept}")
    later = [step for step in found if step > start]
    if not later:
        raise FileNotFoundError(f"--from {start}: {run} has no later checkpoint to compare with; it has {kept}")
    end = later[0] if last is None else last
    if end not in later:
        raise FileNotFoundError(f"--to {end}: {run} has no checkpoint after that update beyond {start}; it has {kept}")
    return found[start], found[end]


def _provenance(checkpoint: Path) -> Provenance | None:
    """None in a checkpoint of dinov2_hf 0.5."""
    try:
        return Provenance.read(checkpoint)
    except FileNotFoundError:
        return None


def _require_processes(checkpoint: Path, config: RunConfig, then: Provenance | None, accelerator: Accelerator) -> None:
    per_process = config.train.batch_size * config.train.gradient_accumulation_steps
    recorded = then.environment.get("processes") if then else None
    processes = recorded or max(read_state(checkpoint)[0].global_batch_size // per_process, 1)
    if processes != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} was written by {processes} processes and there are {accelerator.num_processes} here, which "
            f"does not give the same bits; accelerate launch --num_processes {processes} -m dinov2_hf verify …"
        )


def _train(trainer: Trainer, until: int) -> str:
    """Makes the updates to `until`, without evaluations, metrics and checkpoints; the digest of the weights there."""
    loader = trainer.open_loader(until)
    while trainer.step < until:
        trainer.update(loader)
    return digest_of(cast(dict[str, Tensor], get_model_state_dict(trainer.objective)))


def _expected_digest(checkpoint: Path) -> str:
    """The digest of the weights in a checkpoint, which must be the one that it records. Collective."""
    digest = on_main(lambda: combined(digests_of(read_model_tensors(checkpoint))))
    recorded = _provenance(checkpoint)
    if recorded and recorded.weights != digest:
        raise ValueError(
            f"{checkpoint} records the digest {recorded.weights[:16]}… of its weights, and theirs is {digest[:16]}…; "
            "it was changed after it was written"
        )
    return digest


def _different_tensors(trainer: Trainer, checkpoint: Path) -> list[str]:
    """How many tensors differ, and the largest difference. Collective."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = cast(dict[str, Tensor], get_model_state_dict(trainer.objective, options=options))

    def compare() -> list[str]:
        expected = read_model_tensors(checkpoint)
        distances = {
            name: (tensor.double() - found[name].double()).abs().max().item() if tensor.numel() else 0.0
            for name, tensor in expected.items()
            if name in found and tensor.shape == found[name].shape and not torch.equal(tensor, found[name])
        }
        name = max(distances, key=distances.__getitem__, default=None)
        largest = f"; the largest difference is {distances[name]:.3g}, in {name}" if name else ""
        return [f"{len(distances)} of {len(expected)} tensors differ{largest}"]

    return on_main(compare)
