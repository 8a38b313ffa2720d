"""Trains a run with the parts in a folder, and dies after `UNTIL` updates: `run.py FOLDER UNTIL key=value …`."""

import importlib
import os
import sys
from pathlib import Path

from dinov2_hf.api import Training
from dinov2_hf.config import load_config


def train(until, overrides, die=lambda: os._exit(9)):
    training = Training(load_config(None, overrides))
    update = training.trainer.update

    def update_or_die(*arguments, **options):
        if training.trainer.step == until:
            die()
        return update(*arguments, **options)

    training.trainer.update = update_or_die
    return training.run()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    for path in sorted(folder.glob("*.py")):
        importlib.import_module(path.stem)
    train(int(sys.argv[2]), sys.argv[3:])
