"""The command `dinov2-hf`: one file for each group of commands."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..config import masked, refuse_tokens_in_arguments
from .curate import add_curate
from .data import add_data
from .evaluate import add_evaluate
from .exchange import add_export, add_inspect
from .hub import add_push
from .verify import add_verify
from .visualize import add_visualize


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; what a user can fix ends it with one line, without any token, and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="dinov2-hf", description="Tools around training DINOv2 on your images.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (add_data, add_export, add_inspect, add_push, add_evaluate, add_visualize, add_curate, add_verify):
        add(commands)

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)
    try:
        refuse_tokens_in_arguments(arguments)
    except ValueError as error:
        parser.error(str(error))
    args, rest = parser.parse_known_args(arguments)  # overrides may stand after options too
    unknown = [item for item in rest if item.startswith("-") or "=" not in item or "overrides" not in args]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides += rest
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        parser.error(masked(str(error)))
    except ImportError as error:
        if "dinov2_hf[" not in str(error):  # says which extra to install
            raise
        parser.error(str(error))
