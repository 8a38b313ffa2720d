"""`dinov2-hf data`: look at images before training on them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..config import RunConfig, images_of, load_config
from ..files import Output, check_outputs, made_picture
from .arguments import positive


def add_data(commands) -> None:
    data = commands.add_parser("data", help="look at images before training on them")
    actions = data.add_subparsers(dest="action", required=True, metavar="action")

    stats = _action(
        actions,
        "stats",
        data_stats,
        "sizes, broken files, mean and deviation, throughput; prints the config lines to use",
    )
    stats.add_argument("--images", type=positive, default=2000, help="images to read (default: 2000)")
    stats.add_argument("--workers", type=int, default=2, help="processes that read; 0 for this one (default: 2)")
    show = _action(actions, "show", data_show, "draw a batch: crops as the model sees them, masks on them")
    show.add_argument("--images", type=positive, default=6, help="images, a row each (default: 6)")
    show.add_argument("--output", type=Path, default=Path("batch.png"), help="PNG to write (default: batch.png)")


def data_stats(args: argparse.Namespace) -> None:
    from ..data.stats import describe, measure_source

    config = _config(args)
    print(describe(measure_source(config, args.images, args.workers), config, args.workers))


def data_show(args: argparse.Namespace) -> None:
    config = _config(args)
    read = [("--config", args.config)] if args.config else []
    check_outputs([Output("--output", args.output, made_picture)], images_of(config), files=read)

    from ..data.sheet import draw_sheet

    for item in draw_sheet(config, args.images, args.output):
        print(item.message)
    print(f"{args.output}: {args.images} images, masked patches in red")


def _action(actions, name: str, run, description: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=description, description=description[0].upper() + description[1:] + ".")
    parser.add_argument("--config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.train.path=/my/images")
    parser.set_defaults(run=run)
    return parser


def _config(args: argparse.Namespace) -> RunConfig:
    """The run's configuration, in which other channels than three need no mean and deviation yet."""
    overrides = list(args.overrides)
    channels = [match[1] for item in overrides if (match := re.fullmatch(r"model\.num_channels=(\d+)", item))]
    if channels:
        count = int(channels[-1])
        overrides = [f"colors.mean={[0.0] * count}", f"colors.std={[1.0] * count}", *overrides]
    return load_config(args.config, overrides)
