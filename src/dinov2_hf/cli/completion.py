"""`dinov2-hf completion`: completes commands, options and paths in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .parser import Commands, Parser


def add_completion(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        about="Print a script that completes commands, options and paths in a shell. Needs the extra completion.",
        example="dinov2-hf completion bash > ~/.local/share/bash-completion/completions/dinov2-hf",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that runs the script")
    parser.set_defaults(run=print_completion)


def print_completion(args: argparse.Namespace) -> None:
    """Prints the script.

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ImportError("dinov2-hf completion needs shtab: pip install 'dinov2_hf[completion]'") from None
    from . import build_program

    program = build_program()
    for parser in _parsers(program):
        for action in parser.paths:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(program, args.shell))


def _parsers(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser.subcommands:
        for each in action.choices.values():
            yield from _parsers(each)
