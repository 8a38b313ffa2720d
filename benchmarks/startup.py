"""CPU time until `dinov2-hf --help` has printed and `import dinov2_hf.config` has ended, each in a fresh process.

    python benchmarks/startup.py --runs 9
    PYTHONPATH=/another/clone/src python benchmarks/startup.py   # the same of another version

Prints the median of user and system time, and which heavy packages were imported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

CASES = {
    "dinov2-hf --help": 'import sys; sys.argv = ["dinov2-hf", "--help"]; from dinov2_hf.cli import main; main()',
    "import dinov2_hf.config": "import dinov2_hf.config",
}
LISTED = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *sorted({"torch", "transformers", "datasets", "numpy"} & set(sys.modules))))
"""


def measure(code: str) -> tuple[float, list[str]]:
    """Returns the CPU seconds of a fresh process that runs `code`, and the heavy packages that it imported."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", LISTED + code], capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, done.stdout.splitlines()[-1].split()[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="processes for each row, after one that warms up")
    args = parser.parse_args()
    print(f"| | CPU seconds, median of {args.runs} | heavy packages |\n| --- | --- | --- |")
    for name, code in CASES.items():
        measure(code)
        times, heavy = zip(*(measure(code) for _ in range(args.runs)))
        print(f"| `{name}` | {statistics.median(times):.2f} | {', '.join(heavy[0]) or 'none'} |")


if __name__ == "__main__":
    main()
