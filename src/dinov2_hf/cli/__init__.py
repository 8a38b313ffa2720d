"""The command `dinov2-hf`: one file for each group of commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from .completion import add_completion
from .config import add_config
from .curate import add_curate
from .data import add_data
from .evaluate import add_evaluate
from .exchange import add_export, add_inspect
from .hub import add_push
from .parser import Parser
from .recipes import add_recipes
from .running import execute
from .train import add_distill, add_pretrain
from .verify import add_verify
from .visualize import add_visualize

GROUPS = {
    "Train": (add_pretrain, add_distill, add_verify),
    "Images": (add_data, add_curate),
    "Models": (add_evaluate, add_visualize, add_inspect, add_export, add_push),
    "Configurations": (add_recipes, add_config),
    "Setup": (add_completion,),
}
"""The functions that add the commands, in the order of `dinov2-hf --help`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; what a user can fix ends it with one line, without any token, and status 2."""
    execute(build_program(), sys.argv[1:] if arguments is None else arguments)


def build_program() -> Parser:
    """Returns the parser of the program with all of its commands."""
    program = _Program(prog="dinov2-hf")
    program.add_argument("--version", action=_Version)
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for title, adders in GROUPS.items():
        before = set(commands.choices)
        for add in adders:
            add(commands)
        program.groups[title] = [name for name in commands.choices if name not in before]
    program.lines = {action.dest: action.help or "" for action in commands._get_subactions()}
    return program


class _Program(Parser):
    """Shows the commands by groups."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.groups: dict[str, list[str]] = {}
        self.lines: dict[str, str] = {}

    def format_help(self) -> str:
        lines = [
            f"usage: {self.prog} COMMAND ...",
            "",
            "Train, distil and evaluate the DINO family of vision backbones on your images.",
        ]
        for title, names in self.groups.items():
            lines += ["", f"{title}:", *(f"  {name:<11} {self.lines[name]}" for name in names)]
        lines += [
            "",
            "Options:",
            "  -h, --help  show this help",
            "  --version   show the versions of dinov2_hf, Python, torch and transformers",
            "",
            f"{self.prog} COMMAND --help shows what a command takes, with an example; --keys shows what can be set.",
            "",
        ]
        return "\n".join(lines)


class _Version(argparse.Action):
    """Prints versions from the metadata of the installed packages, which imports none of them."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show versions")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = [f"Python {platform.python_version()}"]
        for name in ("torch", "transformers"):
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                found.append(f"{name} not installed")
        print(f"dinov2_hf {__version__} ({', '.join(found)})")
        parser.exit()
