"""From the words of a command line to the function that they ask for, and from errors to one line."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from ..config import refuse_tokens_in_arguments
from ..launcher import follow_launcher
from .arguments import describe_sections, import_parts
from .parser import Parser


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Returns what a command line says; ends the program where it cannot be understood or holds a token."""
    try:
        refuse_tokens_in_arguments(arguments)
    except ValueError as error:
        parser.fail(str(error))
    args, rest = parser.parse_known_args(arguments)
    args.parser.place(args, rest)
    return args


def execute(parser: Parser, arguments: Sequence[str]) -> None:
    """Parses `arguments` and runs the command, or prints its keys.

    What a user can fix ends the program with one line, without any token, and status 2; Ctrl-C with one line and
    status 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[_AboveBars()])
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)
    args = parse(parser, arguments)
    follow_launcher()
    command: Parser = args.parser
    try:
        import_parts(getattr(args, "imports", ()))
        if getattr(args, "keys", None) is not None:
            print(describe_sections(args.sections(args), args.keys))
        else:
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends the process at once
        command.end("stopped by Ctrl-C", 128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        command.fail(str(error))
    except ImportError as error:
        if "dinov2_hf[" not in str(error):  # says which extra to install
            raise
        command.fail(str(error))


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]  # not in Python 3.10
    """Writes to standard error, each record on lines of its own above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if (tqdm := sys.modules.get("tqdm")) is None:
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)
