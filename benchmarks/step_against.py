"""CPU seconds of whole updates of this tree against those of another one, such as a worktree of an older version.

    git worktree add ../old v0.5.0
    python benchmarks/step_against.py --other ../old
    python benchmarks/step_against.py --other ../old --pairs 20 model.preset=small train.precision=bf16

Two processes of one thread each, one for each tree, make updates in turn, as `benchmarks/step.py` of their tree makes
them. Each update is timed in CPU seconds of its process, so that other work on the machine disturbs little. Prints a
table in Markdown: the median of both, and the median of the ratios of neighbouring updates, this tree to the other,
with its 95 % interval (bootstrap over pairs). Free of noise are the last two columns: the tensor operations of an
update, and of those that only one of the trees makes, the elements of the largest operand; views and empty operands do
not count. Without keys: three sizes, fp32 and bf16. `--tiny` only shows that the script runs: its numbers mean nothing.
"""

import argparse
import itertools
import json
import math
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PLAIN = ["model.num_register_tokens=0", "model.drop_path_rate=0", "ibot.separate_head=true"]
HEADS = ["dino.num_prototypes=8192", "ibot.num_prototypes=8192"]
SIZES = {
    "ViT-S/14, batch 4": ["model.preset=small", "train.batch_size=4"],
    "ViT-B/14, batch 2": ["model.preset=base", "train.batch_size=2"],
    "ViT-L/14, 6 layers, batch 2": ["model.preset=large", "model.num_hidden_layers=6", "train.batch_size=2"],
}
PRECISIONS = ("fp32", "bf16")


def work(tree: Path, keys: list[str]) -> None:
    """Makes an update for each line on the standard input, and prints its CPU seconds."""
    sys.path.insert(0, str(tree / "src"))
    import torch

    torch.set_num_threads(1)
    step = runpy.run_path(str(tree / "benchmarks" / "step.py"), run_name="step")
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["data.train.path=noise", f"train.output_dir={folder}", "train.gradient_accumulation_steps=1"]
        config = step["load_config"](None, [*keys, *fixed])
        accelerator = step["build_accelerator"](config.train)
    torch.manual_seed(0)
    kind = step["find_objective"](config) if "find_objective" in step else step["DINOv2Pretraining"]  # until 0.5
    model = kind(config)
    batch = step["make_batch"](config)
    update = step["TrainingStep"](model, config, accelerator)
    for index, line in enumerate(sys.stdin):
        if line.strip():
            print(json.dumps(count_operations(lambda: update(lambda: batch, step["VALUES"], index))), flush=True)  # noqa: B023
            continue
        start = time.process_time()
        update(lambda: batch, step["VALUES"], index)
        print(time.process_time() - start, flush=True)


def count_operations(action) -> dict[str, int]:
    """How often `action` calls each tensor operation, by its name and the types and shapes of its operands."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    def operands(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{value.dtype}{list(value.shape)}" if value.numel() else ""
        return " ".join(filter(None, map(operands, value))) if isinstance(value, (list, tuple)) else ""

    counts: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:
                counts[f"{function} {operands(args)}"] += 1
            return function(*args, **(kwargs or {}))

    with Count():
        action()
    return counts


class Tree:
    """The process of a tree."""

    def __init__(self, tree: Path, keys: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", str(tree), *keys],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def update(self) -> float:
        """The CPU seconds of an update."""
        return float(self._ask(""))

    def operations(self) -> Counter[str]:
        """The operations of an update."""
        return Counter(json.loads(self._ask("operations")))

    def _ask(self, what: str) -> str:
        assert self._process.stdin and self._process.stdout
        print(what, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with status {self._process.wait()}; its output is above")
        return line

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def compare(other: Path, keys: list[str], pairs: int) -> str:
    """Returns the cells of a row: both medians, the median of the ratios, its interval, and operations."""
    trees = [Tree(ROOT, keys), Tree(other, keys)]
    for tree in trees:
        tree.update()  # the first one allocates
    seconds = np.zeros((pairs, 2))
    for index in range(pairs):
        for which in (0, 1) if index % 2 else (1, 0):
            seconds[index, which] = trees[which].update()
    here, there = (tree.operations() for tree in trees)
    elements = [
        math.prod(json.loads(shape))
        for name in (here - there) + (there - here)
        for shape in re.findall(r"\[.*?\]", name)
    ]
    operations = f"{here.total():,} / {there.total():,} | {max(elements, default=0):,}"
    for tree in trees:
        tree.end()
    ratios = seconds[:, 0] / seconds[:, 1]
    drawn = np.random.default_rng(0).choice(ratios, (2000, pairs))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    medians = " | ".join(f"{median:.2f}" for median in np.median(seconds, axis=0))
    return f"{medians} | {np.median(ratios):.3f} | {low:.3f} to {high:.3f} | {operations}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="root of the other tree")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of updates of each setting (default: 12)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("keys", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if args.work:
        work(args.work.resolve(), args.keys)
        return
    if not args.other or not (args.other / "benchmarks" / "step.py").is_file():
        parser.error("give --other: the root of a tree that has benchmarks/step.py")
    settings = {
        f"{name}, {precision}": [*PLAIN, *HEADS, *size, f"train.precision={precision}"]
        for (name, size), precision in itertools.product(SIZES.items(), PRECISIONS)
    }
    if args.tiny:
        settings = {"tiny": runpy.run_path(str(ROOT / "benchmarks" / "step.py"), run_name="step")["TINY"]}
    elif args.keys:
        settings = {" ".join(args.keys): [*PLAIN, *args.keys]}
    print("| Update of | This tree, s | The other, s | Ratio | 95 % interval | Operations | Largest that differs |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, keys in settings.items():
        print(f"| {name} | {compare(args.other.resolve(), keys, args.pairs)} |", flush=True)


if __name__ == "__main__":
    main()
