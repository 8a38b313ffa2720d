"""A student distilled, and the same student pretrained alone for as many updates: k-NN accuracy of both.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --teacher runs/quickstart --seeds 1 --epochs 12

Trains a teacher by `configs/pretrain/quickstart.yaml`, unless one is given, and for each seed three students by
`configs/distill/quickstart.yaml`: alone, over the teacher's prototypes, over its features. All see the bundled
photographs without labels and share every key but those of the objective. Runs under `--output` are continued.
Prints a table in Markdown: accuracy on the validation set, by which the keys were chosen, and on the test set. `--tiny`
only shows that the script runs: its numbers mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from datasets import load_dataset
from omegaconf import OmegaConf

import dinov2_hf.api  # noqa: F401  for the examples, which are run in forks of this process
from dinov2_hf import cli

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples" / "data" / "clothing"
SPLITS = ("validation", "test")
TEACHER = ("pretrain", "configs/pretrain/quickstart.yaml")
STUDENT = ("distill", "configs/distill/quickstart.yaml")
FEATURES = "features.yaml"
"""The same with the other objective, without the keys that it does not read; under `--output`."""
AS_THE_STUDENT = ("model.hidden_size=48", "optim.base_lr=0.02")  # where the two files differ, besides the teacher
WAYS = {
    "pretrained alone": (*TEACHER, *AS_THE_STUDENT),
    "distilled, prototypes": STUDENT,
    "distilled, features": ("distill", FEATURES),
}
TINY = ["train.epoch_length=1", "train.batch_size=8", "data.num_workers=0"]
TINY_HEADS = ["dino.num_prototypes=64"]


def run(work: Callable, *arguments: str) -> None:
    """Calls `work` in a process of its own: this one imports everything, and computes nothing."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{' '.join(arguments)}: ended with status {process.exitcode}; its output is above")


def run_example(*arguments: str) -> None:
    os.chdir(ROOT)
    sys.argv = list(arguments)
    runpy.run_path(arguments[0], run_name="__main__")


def run_command(*arguments: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    cli.main(arguments)


def train(folder: Path, script: str, config: str, *overrides: str) -> Path:
    """The export of a run, which is made, or continued where it broke off."""
    run(run_example, f"examples/{script}.py", "--config", config, *overrides, f"train.output_dir={folder}")
    return folder / "export"


def accuracies(export: Path, images: Path, num_workers: int) -> dict[str, float]:
    """k-NN accuracy, 20 neighbours, on each split."""
    found = {}
    for split in SPLITS:
        output = export.parent / f"knn-{split}"
        options = {"model": export, "data": images, "cache": export.parent / "features", "output": output}
        arguments = ["evaluate", "knn", f"test.split={split}", "k=[20]", f"num_workers={num_workers}"]
        arguments += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        run(run_command, *arguments)
        (result,) = json.loads((output / "results.json").read_text())["results"]
        found[split] = result["value"]
    return found


def write_features_config(path: Path) -> None:
    config = OmegaConf.load(ROOT / STUDENT[1])
    config.objective, config.teacher = "distill_features", {"momentum": config.teacher.momentum}
    for source in (config.data.train, config.knn.reference, config.knn.query):
        source.path = str(IMAGES)
    del config.dino
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, path)


def copy_few_images(folder: str) -> None:
    """The first 24 photographs of each split, as files of the same names."""
    for split in ("train", *SPLITS):
        load_dataset(str(IMAGES), split=split).select(range(24)).to_parquet(f"{folder}/{split}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="output folder of a run (default: train one)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/distillation", help="(default: runs/distillation)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--epochs", type=float, default=6, help="of a student, 48 updates each (default: 6)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    args = parser.parse_args()

    output, images, num_workers, keys, heads = args.output.resolve(), IMAGES, 2, [], []
    write_features_config(output / FEATURES)
    if args.tiny:
        args.seeds, args.epochs, num_workers = 1, 1, 0
        images = output / "images"
        run(copy_few_images, str(images))
        heads = TINY_HEADS
        keys = [*TINY, f"data.train.path={images}", "knn.reference.path=null", "knn.query.path=null", "train.epochs=1"]
    teacher = args.teacher.resolve() if args.teacher else output / "teacher"
    best = accuracies(
        teacher / "export" if args.teacher else train(teacher, *TEACHER, *keys, *heads), images, num_workers
    )
    found = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        for way, (script, config, *overrides) in WAYS.items():
            given = [*keys, f"train.seed={seed}", f"train.epochs={args.epochs}", *overrides]
            given += [f"distill.teacher={teacher}"] * (script == "distill")
            if config == FEATURES:
                config = str(output / FEATURES)
            else:
                given += heads
            folder = output / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            found[way].append(
                accuracies(
                    train(folder, script, config, *given),
                    images,
                    num_workers,
                )
            )

    print(f"\n{round(args.epochs * 48)} updates of each student, {args.seeds} seeds\n")
    print("| | " + " | ".join(f"{split} | mean" for split in SPLITS) + " |\n| --- |" + " --- | ---: |" * len(SPLITS))
    for way, runs in [("the teacher", [best]), *found.items()]:
        cells = []
        for split in SPLITS:
            values = [run[split] for run in runs]
            cells += [", ".join(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}"]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
