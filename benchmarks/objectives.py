"""The objectives of the family in equal time: k-NN accuracy of each on the bundled photographs, beside its start.

    python benchmarks/objectives.py                                                   # 3 seeds of 120 seconds each
    python benchmarks/objectives.py --seconds 60 --seeds 1 --only dino-vit ibot-vit

DINO, iBOT, DINOv2 and SimDINO train the same ViT; DINO and SimDINO also train a small ResNet. All run on one core
(Linux) and read images in the training process, so that its CPU seconds are all that a run takes. First the rate of an
entry is measured: the CPU seconds of a number of updates less those of half of them. A run then has as many updates as
fit into the time, with its schedules over that length. Prints a table in Markdown: updates, images per CPU second, and
the accuracy that `accuracy.py` measures, leave-one-out over train and validation: at random initialisation, after
training, and the gain with its 95 % interval over the images. Means over the seeds. Runs lie under `--output`; those
that are finished are not repeated. `--tiny` only shows that the script runs: its numbers mean nothing.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from accuracy import MEASURES, load_splits, measure, with_interval

from dinov2_hf import Run, pretrain

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples" / "data" / "clothing"
EPOCH = 48
"""Updates that are called an epoch: one pass over the photographs."""
PROBE = 24
"""Updates whose CPU seconds are measured, after as many others."""
COMMON: dict[str, Any] = {
    "crops.global_size": 48,
    "crops.global_scale": [0.5, 1.0],
    "crops.num_local": 0,
    "colors.grayscale_probability": 0.5,
    "dino.hidden_dim": 512,
    "teacher.momentum": 0.95,
    "optim.lr": 0.002,
    "optim.warmup_epochs": 1,
    "optim.layerwise_decay": 1.0,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.04,
    "data.num_workers": 0,
    "train.batch_size": 64,
    "train.epoch_length": EPOCH,
    "train.log_every": EPOCH,
    "train.precision": "bf16",
}
PROTOTYPES: dict[str, Any] = {
    "dino.num_prototypes": 1024,
    "dino.bottleneck_dim": 128,
    "teacher.centering": "sinkhorn_knopp",
    "teacher.warmup_temp": 0.02,
    "teacher.temp": 0.02,
    "teacher.warmup_temp_epochs": 0,
    "optim.freeze_last_layer_epochs": 0.5,
}
"""For a set, a batch and a time that are small: the published temperatures leave the targets uniform here."""
VIT: dict[str, Any] = {
    "model.family": "vit",
    "model.patch_size": 8,
    "model.hidden_size": 96,
    "model.num_hidden_layers": 6,
    "model.num_attention_heads": 3,
    "model.drop_path_rate": 0.0,
}
RESNET: dict[str, Any] = {
    "model.family": "resnet",
    "model.preset": "tiny",
    "model.embedding_size": 32,
    "model.hidden_sizes": [64, 128, 256],
    "model.depths": [1, 1, 1],
}
ENTRIES: dict[str, dict[str, Any]] = {
    "dino-vit": {"objective": "dino", **PROTOTYPES, **VIT},
    "ibot-vit": {"objective": "ibot", **PROTOTYPES, **VIT},
    "dinov2-vit": {"objective": "dinov2", **PROTOTYPES, **VIT},
    "simdino-vit": {"objective": "simdino", **VIT},
    "dino-resnet": {"objective": "dino", **PROTOTYPES, **RESNET},
    "simdino-resnet": {"objective": "simdino", **RESNET},
}
TINY = {"train.batch_size": 8, "train.log_every": 1}


def train(keys: dict[str, Any], updates: int, folder: Path) -> tuple[Run, float]:
    """The run of so many updates, and its CPU seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    length = {"train.epochs": updates / EPOCH, "train.checkpoint_epochs": max(1, updates / EPOCH)}
    start = time.process_time()
    run = pretrain(str(IMAGES), folder, keys=keys | length, resume="never")
    if run.stopped:
        raise SystemExit("stopped by a signal")
    return run, time.process_time() - start


def seconds_per_update(keys: dict[str, Any], folder: Path, probe: int) -> float:
    train(keys, 1, folder)  # what is imported and prepared once
    return (train(keys, 2 * probe, folder)[1] - train(keys, probe, folder)[1]) / probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of each run (default: 120)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each entry (default: 3)")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=[*ENTRIES], help="entries (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/objectives", help="(default: runs/objectives)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    keys = {name: COMMON | ENTRIES[name] | (TINY if args.tiny else {}) for name in args.only}
    args.output.mkdir(parents=True, exist_ok=True)
    rates = args.output / "seconds_per_update.json"
    seconds = json.loads(rates.read_text()) if rates.exists() else {}
    for name in args.only:
        if name not in seconds:
            seconds[name] = seconds_per_update(keys[name], args.output / "probe", 1 if args.tiny else PROBE)
            rates.write_text(json.dumps(seconds, indent=2))
    splits = load_splits(IMAGES, 40 if args.tiny else None)
    print("| Entry | Updates | Images per CPU second | Random initialisation, % | Trained, % | Gain |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name in args.only:
        updates = 2 if args.tiny else max(1, round(args.seconds / seconds[name]))
        runs = []
        for seed in range(args.seeds):
            folder = args.output / f"{name}-{updates}-{seed}"
            done = Run(folder)
            if not (folder.is_dir() and done.exports):
                done, _ = train(keys[name] | {"train.seed": seed}, updates, folder)
            runs.append(done)
        found = {way: 100 * each[MEASURES[0]] for way, each in measure(runs, splits).items()}
        before, after = found["random"], found["trained"]
        rate = keys[name]["train.batch_size"] / seconds[name]
        row = f"{updates} | {rate:.0f} | {before.mean():.1f} | {after.mean():.1f} | {with_interval(after - before)}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
