"""Trains a run with parts from outside the package, and dies after `UNTIL` updates: `run.py UNTIL key=value …`."""

import importlib
import os
import sys
from pathlib import Path

from dinov2_hf.api import Run
from dinov2_hf.config import load_config


def train(until, overrides):
    run = Run(load_config(None, overrides))
    update = run.trainer.update

    def update_or_die(*arguments, **options):
        if run.trainer.step == until:
            os._exit(9)
        return update(*arguments, **options)

    run.trainer.update = update_or_die
    return run.train()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for name in ("circles", "conv", "gram", "masked_regression", "rank"):
        importlib.import_module(name)
    train(int(sys.argv[1]), sys.argv[2:])
