"""`dinov2-hf verify`: a stretch of a run, trained again and compared to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_device, add_imports, add_model, without_bars
from .parser import Commands


def add_verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="train a stretch of a run again and compare the weights",
        about="Train a stretch of a run again, from one of its checkpoints to another, and compare the weights to the "
        "bit. Writes nothing into the run. Images and, of a distillation, the teacher must be where the run read them. "
        "With several processes: accelerate launch --num_processes N -m dinov2_hf verify RUN. The exit status is 0 "
        "where the weights are equal, 1 where they differ, 2 where it cannot be done.",
        example="dinov2-hf verify runs/mine --from 400 --to 450",
    )
    add_model(
        parser,
        "output folder of a run, with two checkpoints",
        word=True,
        metavar="RUN",
        remedy="the output folder of a run",
    )
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
    add_device(parser)
    add_imports(parser)
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from ..api.process import computing_on
    from ..train.verify import verify_run

    without_bars()
    with computing_on(args.device):
        replay = verify_run(Path(args.model), args.first, args.last)
    if PartialState().is_main_process:
        print(replay.describe())
    if not replay.equal:
        raise SystemExit(1)
