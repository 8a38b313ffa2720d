"""Damages to a checkpoint, by hand and drawn at random, and files that would run code."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dinov2_hf.runs.checkpoint import find_checkpoints
from dinov2_hf.train import Trainer

OF_0_5 = ("step", "global_batch_size", "head_warmup_steps", "counters", "scaler")
"""What run.json of dinov2_hf 0.5 has."""


class Springs:
    """A pickle that makes a folder where it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_pickle(marker: Path) -> bytes:
    """A pickle that makes the folder `marker` where it is opened."""
    return pickle.dumps(Springs(marker))


def sign(checkpoint: Path) -> None:
    """Gives the files of a checkpoint the sizes and checksums that its manifest says, as one who writes them can."""
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    content["files"] = {
        file.name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in checkpoint.iterdir()
        if file != path
    }
    path.write_text(json.dumps(content))


def flip(path: Path, count: int, seed: int) -> None:
    """Flips a bit in each of `count` bytes of a file."""
    rng, content = random.Random(seed), bytearray(path.read_bytes())
    for place in rng.sample(range(len(content)), min(count, len(content))):
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def as_of_0_5(checkpoint: Path) -> None:
    """Takes away what dinov2_hf 0.5 did not write."""
    for name in ("manifest.json", "provenance.json"):
        (checkpoint / name).unlink()
    state = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps({name: state[name] for name in OF_0_5}))


# ------------------------------------------------------------------------------------------------------ drawn at random

_VALUES = [None, True, -1, 3.5, 10**30, "text", [], {}, [1, "a"], {"a": {"b": 1}}, "${oc.env:HOME}", "\ud800"]


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def _flip(path: Path, rng: random.Random) -> None:
    flip(path, rng.choice([1, 2, 8, 64]), rng.randrange(1 << 30))


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _append(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 100, 5000])))


def _zeros(path: Path, rng: random.Random) -> None:
    """As a file system can leave a file after a loss of power."""
    path.write_bytes(bytes(path.stat().st_size))


def _noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _swap(path: Path, rng: random.Random) -> None:
    """With another file, of this checkpoint or of another."""
    others = sorted(other for other in path.parents[1].glob("step-*/*") if other.is_file() and other != path)
    other = rng.choice(others)
    own = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(own)


def _of_another_checkpoint(path: Path, rng: random.Random) -> None:
    others = sorted(other for other in path.parents[1].glob(f"step-*/{path.name}") if other.is_file() and other != path)
    if others:
        path.write_bytes(rng.choice(others).read_bytes())


def _link(path: Path, rng: random.Random) -> None:
    """To the same content elsewhere, to another checkpoint, to nothing, or to itself."""
    elsewhere = path.parents[2] / f"{path.name}-{rng.randrange(1 << 30)}"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    others = sorted(path.parents[1].glob(f"step-*/{path.name}"))
    path.symlink_to(rng.choice([elsewhere, *others, path.parent / "nothing", path]))


def _odd_json(path: Path, rng: random.Random) -> None:
    """A value of another kind, a key less or more, or something else altogether."""
    path = path.parent / rng.choice(["run.json", "manifest.json", "provenance.json"])
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text())
        table = rng.choice([content, *(value for value in content.values() if isinstance(value, dict))])
        key = rng.choice(sorted(table) or ["x"])
    except (ValueError, AttributeError):  # it was damaged before
        return
    action = rng.choice(["change", "remove", "add", "replace"])
    if action == "change":
        table[key] = rng.choice(_VALUES)
    elif action == "remove":
        table.pop(key, None)
    elif action == "add":
        table["another"] = rng.choice(_VALUES)
    else:
        content = rng.choice(_VALUES)
    path.write_text(json.dumps(content))


def _odd_yaml(path: Path, rng: random.Random) -> None:
    """A line of the configuration changed, left out or added."""
    path = path.parent / "config.yaml"
    if not path.is_file():
        return
    lines = path.read_text(errors="replace").splitlines() or [""]
    number = rng.randrange(len(lines))
    key = lines[number].partition(":")[0]
    odd = [": [", "\t", "a: 1", "- 1", "${oc.env:HOME}", "!!python/object/apply:os.mkdir [sprung]", "&a [*a]", "\0"]
    lines[number] = rng.choice([*odd, *(f"{key}: {value}" for value in ("-1", "text", "[1]", "null", "1e99"))])
    path.write_text("\n".join(lines[: rng.choice([len(lines), number])] if rng.random() < 0.3 else lines))


ACTIONS = [
    _truncate,
    _flip,
    _delete,
    _empty,
    _append,
    _zeros,
    _noise,
    _folder,
    _swap,
    _of_another_checkpoint,
    _link,
    _odd_json,
    _odd_yaml,
]


@dataclass
class Damaged:
    """What was done to the checkpoints of a run."""

    description: str
    signed: bool
    """Whether the checksums were written again, so that other contents are what somebody wanted."""
    resume: str
    """`auto` or the path of a checkpoint."""


def damage_at_random(folder: Path, seed: int, marker: Path) -> Damaged:
    """Damages one or two files of the checkpoints in `folder`, as the seed draws them.

    Args:
        marker: a folder that planted pickles make where they are opened.
    """
    rng = random.Random(seed)
    checkpoints = sorted(folder.glob("step-*"))
    told, signed = [], False
    if rng.random() < 0.25:
        for checkpoint in checkpoints:
            as_of_0_5(checkpoint)
        told.append("as of 0.5")
    for _ in range(rng.choice([1, 1, 1, 2])):
        checkpoint = rng.choice([checkpoints[-1], checkpoints[-1], *checkpoints])
        files = sorted(path for path in checkpoint.iterdir() if path.is_file())
        if told[:1] == ["as of 0.5"]:  # which has no checksums of its texts: a digit can change unseen
            files = [path for path in files if path.suffix == ".distcp" or path.name == ".metadata"]
        if not files:
            continue
        path = rng.choice(files)
        if rng.random() < 0.1:
            path.write_bytes(hostile_pickle(marker))
            told.append(f"{checkpoint.name}/{path.name}: hostile pickle")
        elif rng.random() < 0.05:
            shutil.rmtree(checkpoint)
            checkpoint.mkdir()
            told.append(f"{checkpoint.name}: emptied")
        else:
            actions = ACTIONS[:-4] if told[:1] == ["as of 0.5"] else ACTIONS
            action = rng.choice(actions)
            action(path, rng)
            told.append(f"{checkpoint.name}/{path.name}: {action.__name__.strip('_')}")
        if rng.random() < 0.3 and (checkpoint / "manifest.json").is_file():
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # it is damaged itself
                sign(checkpoint)
                signed = True
                told.append("signed")
    resume = "auto" if rng.random() < 0.6 else str(rng.choice(checkpoints))
    return Damaged(f"{'; '.join(told)}; resumed {Path(resume).name}", signed, resume)


class Fuzz:
    """Resumes damaged copies of a run that ended after six updates, and compares what they load.

    Args:
        run: its folder, with checkpoints after 2, 4 and 6 updates.
        config_in: gives the configuration of the run in another folder.
    """

    def __init__(self, run: Path, config_in, accelerator) -> None:
        self.run, self.config_in, self.accelerator = run, config_in, accelerator
        self.expected = {}
        for path in find_checkpoints(run / "checkpoints"):
            trainer = Trainer.from_config(config_in(run), self.accelerator, resume=str(path))
            self.expected[trainer.step] = self._state(trainer)

    def try_one(self, seed: int, work: Path, to_the_end: bool = False) -> tuple[str, str]:
        """Damages a copy in the folder `work` and resumes it.

        Returns:
            What was done, and what came of it: the name of the checkpoint that was loaded, or the message.

        Raises:
            AssertionError: a message of several lines, other tensors than those that were written, a pickle that ran.
            Exception: what a user would see as a traceback.
        """
        shutil.copytree(self.run, work / "run")
        folder = work / "run" / "checkpoints"
        shutil.rmtree(folder / "step-00000006")
        damaged = damage_at_random(folder, seed, work / "sprung")
        config = self.config_in(work / "run")
        result = None
        try:
            with _inside(work):
                trainer = Trainer.from_config(config, self.accelerator, resume=damaged.resume)
                result = f"continued from update {trainer.step}"
                same = self._same(trainer)
                if to_the_end and same:
                    trainer.run()
                    same = self._same(trainer)
        except (ValueError, OSError) as error:  # what the command turns into a line and status 2
            result = str(error)
            assert result and "\n" not in result, (damaged, result)
        else:
            assert same or damaged.signed, (damaged, result)
        assert not (work / "sprung").exists(), damaged
        return damaged.description, result

    def _state(self, trainer: Trainer) -> tuple[dict, dict, dict]:
        optimizer = trainer.training_step.optimizer.state_dict()
        tensors = {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}
        moments = {f"{n}.{key}": value.clone() for n, one in optimizer["state"].items() for key, value in one.items()}
        state = asdict(trainer.state)
        return tensors, moments, {name: state[name] for name in OF_0_5}

    def _same(self, trainer: Trainer) -> bool:
        """Whether the trainer has what an undamaged run has after as many updates."""
        if trainer.step not in self.expected:
            return False
        (tensors, moments, state), found = self.expected[trainer.step], self._state(trainer)
        pairs = [(tensors, found[0]), (moments, found[1])]
        equal = all(
            ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
            for ours, theirs in pairs
        )
        return equal and state == found[2]


@contextlib.contextmanager
def _inside(folder: Path):
    before = os.getcwd()
    os.chdir(folder)  # where a planted `mkdir sprung` would show
    try:
        yield
    finally:
        os.chdir(before)
