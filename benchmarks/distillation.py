"""A student distilled, and the same student pretrained alone for as many updates: k-NN accuracy of both.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --teacher runs/quickstart --seeds 1 --epochs 12

Trains a teacher by `configs/pretrain/quickstart.yaml`, unless one is given, and for each seed three students by
`configs/distill/quickstart.yaml`: alone, over the teacher's prototypes, over its features. All see the bundled
photographs without labels and share every key but those of the objective. Runs under `--output` are continued.
Prints a table in Markdown: accuracy on the validation set, by which the keys were chosen, and on the test set.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = "examples/data/clothing"
SPLITS = ("validation", "test")
TEACHER = ("pretrain", "configs/pretrain/quickstart.yaml")
STUDENT = ("distill", "configs/distill/quickstart.yaml")
AS_THE_STUDENT = ("model.hidden_size=48", "optim.base_lr=0.02")  # where the two files differ, besides the teacher
WAYS = {
    "pretrained alone": (*TEACHER, *AS_THE_STUDENT),
    "distilled, prototypes": STUDENT,
    "distilled, features": (*STUDENT, "distill.objective=features"),
}


def train(folder: Path, script: str, config: str, *overrides: str) -> Path:
    """The export of a run, which is made, or continued where it broke off."""
    command = [sys.executable, f"examples/{script}.py", "--config", config, *overrides]
    subprocess.run([*command, f"train.output_dir={folder}"], cwd=ROOT, check=True)
    return folder / "export"


def accuracies(export: Path) -> dict[str, float]:
    """k-NN accuracy, 20 neighbours, on each split."""
    found = {}
    for split in SPLITS:
        output = export.parent / f"knn-{split}"
        options = {"model": export, "data": IMAGES, "cache": export.parent / "features", "output": output}
        command = [sys.executable, "-m", "dinov2_hf.cli", "evaluate", "knn", f"test.split={split}", "k=[20]"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (result,) = json.loads((output / "results.json").read_text())["results"]
        found[split] = result["value"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="output folder of a run (default: train one)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/distillation", help="(default: runs/distillation)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--epochs", type=float, default=6, help="of a student, 48 updates each (default: 6)")
    args = parser.parse_args()

    output = args.output.resolve()
    teacher = args.teacher.resolve() if args.teacher else output / "teacher"
    best = accuracies(teacher / "export" if args.teacher else train(teacher, *TEACHER))
    found = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        for way, (script, config, *overrides) in WAYS.items():
            given = [f"train.seed={seed}", f"train.epochs={args.epochs}", *overrides]
            given += [f"distill.teacher={teacher}"] * (script == "distill")
            folder = output / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            found[way].append(accuracies(train(folder, script, config, *given)))

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
