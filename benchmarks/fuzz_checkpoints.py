"""Damages to the checkpoints of a run, drawn at random: what is resumed has the weights that were written.

    python benchmarks/fuzz_checkpoints.py --damages 500

Trains a tiny run of six updates. For each seed damages one or two files of a copy of its checkpoints (truncated,
flipped, deleted, swapped, replaced by a pickle that would run code, odd JSON and YAML, …; `tests/train/damages.py`
draws them) and resumes it. Either model, optimiser and state are those that were written, or the message is one line.
Prints each seed for which neither holds, and ends with status 1 if there is one.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from dinov2_hf.config import load_config
from dinov2_hf.train import Trainer, build_accelerator

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / name) for name in ("", "train")]
from damages import Fuzz  # noqa: E402
from tiny import TINY, write_photographs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--every", type=int, default=20, help="of these, one trains to the end if it continues")
    args = parser.parse_args()
    logging.getLogger("dinov2_hf").setLevel(logging.CRITICAL)
    begin, failures, results = time.perf_counter(), [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        write_photographs(images)

        def config_in(run: Path):
            own = [f"data.train.path={images}", f"train.output_dir={run}", "train.keep_checkpoints=3"]
            return load_config(None, [*TINY, *own])

        config = config_in(Path(folder, "run"))
        accelerator = build_accelerator(config.train)
        torch.set_num_threads(1)  # tensors are so small that threads would only wait for each other
        Trainer.from_config(config, accelerator).run()
        fuzz = Fuzz(Path(folder, "run"), config_in, accelerator)
        for seed in range(args.seed, args.seed + args.damages):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                try:
                    what, result = fuzz.try_one(seed, Path(work), to_the_end=seed % args.every == 0)
                except Exception:
                    failures.append(seed)
                    print(f"seed {seed}:")
                    traceback.print_exc(file=sys.stdout)
                    continue
            results[result if result.startswith("continued") else "refused in one line"] += 1
    counts = ", ".join(f"{count} {name}" for name, count in results.most_common())
    seconds = time.perf_counter() - begin
    print(f"{args.damages} damages from seed {args.seed}: {counts}; {len(failures)} went wrong; {seconds:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
