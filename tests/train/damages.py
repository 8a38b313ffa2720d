"""Damages to a checkpoint, and files that would run code."""

import hashlib
import json
import pickle
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
