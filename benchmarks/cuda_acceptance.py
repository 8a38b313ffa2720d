"""Proves on one CUDA card, in eight minutes, what is said of this project: numbers, speed, memory, resume, sharding.

    python benchmarks/cuda_acceptance.py --output runs/acceptance
    python benchmarks/cuda_acceptance.py --only parity,resume --budget 120
    python benchmarks/cuda_acceptance.py --summarise runs/acceptance/results.jsonl
    python benchmarks/cuda_acceptance.py --tiny --output runs/dry_run        # every section, on a CPU

Each section runs in a process of its own with a limit. Every number is appended to `results.jsonl` under `--output` as
soon as it is there, and what matters most comes first: a section that fails, hangs or is cut takes only its own rest
with it. `log.txt` has all that was printed. At the end `summary.md` has the tables; it starts with what did not pass.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from acceptance.context import Context, write_line
from acceptance.summary import summarise, table_of

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # torch's look for cards then does not touch them
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


@dataclass(frozen=True)
class Section:
    """A function of a module of `acceptance`, and the seconds that it needs at least and may take at most."""

    module: str
    function: str
    least: float
    most: float


SECTIONS = {
    "environment": Section("environment", "environment", 10, 40),
    "parity": Section("parity", "parity", 8, 30),
    "synchronisations": Section("updates", "synchronisations", 8, 25),
    "step": Section("updates", "step_time", 25, 95),
    "kernels": Section("updates", "kernels", 12, 30),
    "losses": Section("numerics", "losses", 8, 30),
    "health": Section("updates", "health", 8, 25),
    "determinism": Section("numerics", "determinism", 8, 25),
    "resume": Section("runs", "resume", 25, 75),
    "compilation": Section("compilation", "compilation", 30, 110),
    "published": Section("published", "published", 12, 50),
    "attention": Section("numerics", "attention", 8, 25),
    "half_precision": Section("numerics", "half_precision", 8, 25),
    "data": Section("images", "data", 15, 50),
    "features": Section("images", "features", 15, 45),
    "sharded": Section("runs", "sharded", 25, 90),
    "tests": Section("suite", "suite", 30, 180),
}
"""What matters most comes first."""
_SLOWER_CPU = 10
"""Times as long as on a card a section may take in a dry run."""


def prepare() -> None:
    """Imports once what all sections need: they run in forks of this process, which itself does not touch a card."""
    for name in ("torch._dynamo", "torch.utils.tensorboard"):
        importlib.import_module(name)
    for section in SECTIONS.values():
        importlib.import_module(f"acceptance.{section.module}")


def run(name: str, context: Context) -> None:
    """One section, in its process."""
    import torch
    from acceptance.processes import lead_group

    lead_group()
    if context.tiny:
        torch.set_num_threads(1)
    print(f"======== {name}", flush=True)
    section = SECTIONS[name]
    getattr(importlib.import_module(f"acceptance.{section.module}"), section.function)(context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/acceptance"), help="(default: runs/acceptance)")
    parser.add_argument("--only", default="", help=f"sections, separated by commas, of {', '.join(SECTIONS)}")
    parser.add_argument("--budget", type=float, default=470, help="seconds for all sections (default: 470)")
    parser.add_argument("--tiny", action="store_true", help="a dry run at the smallest sizes: its numbers mean nothing")
    parser.add_argument("--published", type=Path, help="a tree of facebookresearch/dinov2: its update beside ours")
    parser.add_argument("--summarise", type=Path, metavar="FILE", help="only print the tables of a results.jsonl")
    args = parser.parse_args()
    if args.summarise:
        try:
            return print(summarise(args.summarise))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    chosen = args.only.split(",") if args.only else list(SECTIONS)
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"--only {','.join(unknown)} is not a section; there are {', '.join(SECTIONS)}")
    began = time.monotonic()
    if not args.tiny and not importlib.import_module("torch").cuda.is_available():
        parser.error("torch finds no CUDA card; --tiny runs every section on the CPU at its smallest")

    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    statuses = []
    with tempfile.TemporaryDirectory(prefix="acceptance-") as work:
        os.environ.setdefault("HF_HOME", f"{work}/huggingface")
        for name in [name for name in SECTIONS if name in chosen]:
            status = run_section(name, args, output, Path(work), began + args.budget)
            write_line(output, {"section": "acceptance", "table": "sections", **status})
            print(f"{name}: {status['status']} in {status['seconds']} s", flush=True)
            statuses.append(status)
    (output / "summary.md").write_text(summarise(output / "results.jsonl"))
    print(f"\n{table_of(statuses)}\nTables: {output / 'summary.md'}")


def run_section(name: str, args: argparse.Namespace, output: Path, work: Path, deadline: float) -> dict:
    """The line on a section: `ok`, `failed`, `cut` at its limit, or `skipped` because too little time was left."""
    section = SECTIONS[name]
    if deadline - time.monotonic() < section.least:
        return {"name": name, "status": "skipped", "seconds": 0.0, "rows": 0, "errors": 0, "not_passed": 0}
    prepare()
    from acceptance.processes import end_group, start, wait

    limit = min(section.most * (_SLOWER_CPU if args.tiny else 1), deadline - time.monotonic())
    results = output / "results.jsonl"
    before = results.stat().st_size if results.exists() else 0
    began = time.monotonic()
    context = Context(name, output, work, args.tiny, args.published and args.published.resolve(), limit)
    process = start(run, name, context, log=output / "log.txt")
    (code,) = wait([process], limit)
    end_group(process)  # runs and data workers that a cut section leaves
    rows = []
    if results.exists():
        with open(results) as file:
            file.seek(before)
            rows = [json.loads(line) for line in file]
    return {
        "name": name,
        "status": "cut" if code is None else "failed" if code else "ok",
        "seconds": round(time.monotonic() - began, 1),
        "rows": len(rows),
        "errors": sum("error" in row for row in rows),
        "not_passed": sum(row.get("passed") is False for row in rows),
    }


if __name__ == "__main__":
    main()
