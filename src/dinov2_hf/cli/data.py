"""`dinov2-hf data`: look at images before training on them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import RunConfig, images_of, load_config, sections_of
from ..files import Output, check_outputs, made_picture
from .arguments import add_images, add_imports, add_keys, add_output, overrides_of, positive
from .parser import Commands, Parser


def add_data(commands: Commands) -> None:
    data = commands.add_parser(
        "data",
        help="measure images, or draw a batch of them, before training",
        about="Look at images before training on them.",
        example="dinov2-hf data stats /my/images\ndinov2-hf data show /my/images --output batch.png",
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")

    stats = _action(
        actions,
        "stats",
        data_stats,
        "measure sizes, broken files, mean, deviation and speed",
        "Measure images: their sizes, broken files, mean and deviation of the colours, and how fast they are read. "
        "Prints the lines of a configuration to use.",
        "dinov2-hf data stats /my/images --images 10000",
    )
    stats.add_argument("--images", type=positive, default=2000, metavar="N", help="images to read (default: 2000)")
    stats.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that read; 0: this one reads (default: 2)"
    )
    show = _action(
        actions,
        "show",
        data_show,
        "draw a batch: crops as the model sees them, with their masks",
        "Draw a batch of images: the crops as the model sees them, with the masked patches in red.",
        "dinov2-hf data show /my/images --output batch.png crops.global_size=98",
    )
    show.add_argument("--images", type=positive, default=6, metavar="N", help="images, a row each (default: 6)")
    add_output(show, "PNG file to write (default: batch.png)", default=Path("batch.png"))


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


def _action(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    line: str,
    about: str,
    example: str,
) -> Parser:
    parser = actions.add_parser(name, help=line, about=about, example=example)
    add_images(parser, "images to read: the key data.train.path")
    add_keys(parser, "data.train.split=train", _sections)
    add_imports(parser)
    parser.set_defaults(run=run)
    return parser


def _sections(args: argparse.Namespace) -> Any:
    return sections_of(args.config, args.overrides, RunConfig)


def _config(args: argparse.Namespace) -> RunConfig:
    """The run's configuration, in which other channels than three need no mean and deviation yet."""
    overrides = overrides_of(args, {"data": "data.train.path"})
    channels = [match[1] for item in overrides if (match := re.fullmatch(r"model\.num_channels=(\d+)", item))]
    if channels:
        count = int(channels[-1])
        overrides = [f"colors.mean={[0.0] * count}", f"colors.std={[1.0] * count}", *overrides]
    return load_config(args.config, overrides)
