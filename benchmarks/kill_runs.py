"""Kills and stops runs of many kinds at random moments, and compares what they leave with undisturbed runs.

    nice python benchmarks/kill_runs.py                   # 100 interruptions, ten minutes on two cores
    python benchmarks/kill_runs.py --kills 20 --seed 7
    python benchmarks/kill_runs.py --kills 5 --first 7    # run 7 again

Sources, data workers, processes (DDP, FSDP2) and objectives vary; evaluations, checkpoints and pushes to a Hub on
loopback are due at many updates. Checkpoint, export, metrics, TensorBoard's values, broken files and the Hub's files
have to be equal, apart from times. Prints a line a run and a table in Markdown; ends with status 1 where anything
differs, at once where ten runs do.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.distributed.campaign import KINDS, Campaign  # noqa: E402

INTERRUPTIONS = 5
"""Of a run, at most."""
MOST_FAILURES = 10


def interrupt_runs(campaign: Campaign, kills: int, first: int) -> list[int]:
    """Interrupts runs, from number `first` on, `kills` times in all; numbers of those that differ afterwards."""
    came: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    failed, number, start = [], first, time.monotonic()
    while by_kind.total() < kills and len(failed) < MOST_FAILURES:
        kind = KINDS[number % len(KINDS)]
        try:
            planned, different = campaign.run(kind, number, min(INTERRUPTIONS, kills - by_kind.total()))
        except Exception:
            planned, different = [], [traceback.format_exc()]
        came.update(f"{item.name}, {item.moment}" for item in planned)
        by_kind[kind.name] += len(planned)
        failed += [number] * bool(different)
        outcome = "DIFFERENT: " + "; ".join(different) if different else "equal"
        print(f"run {number} ({kind.name}): {'; '.join(map(str, planned))}: {outcome}", flush=True)
        number += 1
    print(f"\n{by_kind.total()} interruptions of {number - first} runs in {time.monotonic() - start:.0f} s")
    print(f"runs that differ: {', '.join(map(str, failed)) or 'none'}\n")
    for title, counts in (("Signal and moment", came), ("Kind of run", by_kind)):
        print(f"| {title} | Interruptions |\n|---|---:|")
        print("".join(f"| {name} | {count} |\n" for name, count in sorted(counts.items())))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="interruptions of runs (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first run (default: 0)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="kill_runs-"))
    print(f"seed {args.seed}, folder {folder}", flush=True)
    with Campaign(folder, args.seed) as campaign:
        failed = interrupt_runs(campaign, args.kills, args.first)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
