"""Trains and evaluates from Python on every process: `on_processes.py IMAGES FOLDER`; prints what each process gets."""

import os
import sys

from dinov2_hf import evaluate, pretrain
from tests.tiny import TINY

if __name__ == "__main__":
    images, folder = sys.argv[1:]
    run = pretrain(images, folder, keys=[*TINY, "train.epochs=1", "optim.warmup_epochs=0.5"])
    keys = {"test.split": "train", "k": [3], "crop_size": 32, "num_workers": 0, "precision": "fp32"}
    report = evaluate(run.folder, "knn", images, keys=keys)
    # in one write, so that the lines of processes do not mix
    os.write(1, f"rank {os.environ['RANK']}: {run!r} {report.metrics}\n".encode())
