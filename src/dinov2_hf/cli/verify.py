"""`dinov2-hf verify`: a stretch of a run, trained again and compared to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_verify(commands) -> None:
    description = (
        "Train a stretch of a run again, from one of its checkpoints to another, and compare the weights to the bit. "
        "Nothing is written into the run. Images and, of a distillation, the teacher must be where the run read them. "
        "With several processes: accelerate launch --num_processes N -m dinov2_hf.cli verify RUN. The exit status is 0 "
        "where the weights are equal, 1 where they differ, 2 where it cannot be done."
    )
    parser = commands.add_parser("verify", help="train a stretch of a run again and compare", description=description)
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="output folder of a run, with two checkpoints")
    parser.add_argument(
        "--from",
        dest="first",
        type=int,
        metavar="UPDATE",
        help="checkpoint to start from (default: the oldest that is kept)",
    )
    parser.add_argument(
        "--to", dest="last", type=int, metavar="UPDATE", help="checkpoint to compare with (default: the next one)"
    )
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from ..train.verify import verify_run
    from .arguments import without_bars

    without_bars()
    replay = verify_run(args.run_folder, args.first, args.last)
    if PartialState().is_main_process:
        print(replay.describe())
    if not replay.equal:
        raise SystemExit(1)
