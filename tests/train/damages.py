"""Damages to a checkpoint, and files that would run code."""

import hashlib
import json
import pickle
import random
from pathlib import Path


class Springs:
    """A pickle that makes a folder where it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

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
    names = ("step", "global_batch_size", "head_warmup_steps", "counters", "scaler")
    (checkpoint / "run.json").write_text(json.dumps({name: state[name] for name in names}))
