"""Kills and stops runs of many kinds at random moments, and compares what they leave with undisturbed runs.

    python benchmarks/kill_runs.py                        # 100 interruptions, an hour on two cores
    python benchmarks/kill_runs.py --kills 20 --seed 7
    python benchmarks/kill_runs.py --kills 3 --only "tar, 1 workers, DDP, pretrain"

Sources, data workers, processes (DDP, FSDP2) and objectives vary; evaluations, checkpoints and pushes to a Hub on
loopback are due at many updates. Checkpoint, export, metrics, TensorBoard's values, broken files and the Hub's files
have to be equal, apart from times. Prints a line a run and a table in Markdown; ends with status 1 where anything
differs, at once where ten runs do.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.distributed.campaign import KINDS, Campaign  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="interruptions of runs (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", help="name of a kind of runs")
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to repeat one (default: 0)")
    args = parser.parse_args()
    kinds = [kind for kind in KINDS if args.only in (None, kind.name)]
    if not kinds:
        parser.error(f"--only={args.only!r} is none of {'; '.join(kind.name for kind in KINDS)}")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    os.nice(10)

    came: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    failed, number, start = [], args.first, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill_runs-"))
    print(f"seed {args.seed}, folder {folder}", flush=True)
    with Campaign(folder, args.seed) as campaign:
        while by_kind.total() < args.kills and len(failed) < 10:
            kind = kinds[number % len(kinds)]
            try:
                planned, different = campaign.run(kind, number, interruptions=5)
            except Exception:
                planned, different = [], [traceback.format_exc()]
            came.update(f"{item.name}, {item.moment}" for item in planned)
            by_kind[kind.name] += len(planned)
            failed += [number] * bool(different)
            outcome = "DIFFERENT: " + "; ".join(different) if different else "equal"
            print(f"run {number} ({kind.name}): {'; '.join(map(str, planned)) or 'none came'}: {outcome}", flush=True)
            number += 1
    seconds, runs = time.monotonic() - start, number - args.first
    print(
        f"\n{by_kind.total()} interruptions of {runs} runs in {seconds:.0f} s; runs that differ: {failed or 'none'}\n"
    )
    for title, counts in (("Signal and moment", came), ("Kind of run", by_kind)):
        print(f"| {title} | Interruptions |\n|---|---:|")
        print("".join(f"| {name} | {count} |\n" for name, count in sorted(counts.items())))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
