"""How words on the command line become inputs, options and keys, and how a command ends with an error."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ..config import masked

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What a command is added to."""
_KEY = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class _Input:
    """A value that is given as an option or as a word."""

    dest: str
    option: str
    type: Callable[[str], Any]
    many: bool
    word: bool
    """Whether a word can give it."""
    remedy: str
    """What to give where the input is missing; empty for an input that may be missing."""


class Parser(argparse.ArgumentParser):
    """A parser of the program or of one command.

    A word without `-` is a key where it looks like `section.key=value` and the command takes keys; every other word
    goes to the first input that no option gives. Options and words come in any order.

    Args:
        about: what the command does, in whole sentences.
        example: commands to copy, one a line.
    """

    def __init__(self, *args: Any, about: str = "", example: str = "", **settings: Any) -> None:
        width = min(shutil.get_terminal_size().columns - 2, 100)
        if about:
            settings["description"] = textwrap.fill(about, width)
        if example:
            settings["epilog"] = f"example:\n{textwrap.indent(example, '  ')}"
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **settings)
        self.paths: list[argparse.Action] = []
        """The options and words that are paths."""
        self.subcommands: list[Commands] = []
        self._inputs: list[_Input] = []
        self._words: list[str] = []
        self._takes_keys = False
        self.set_defaults(parser=self)

    def add_subparsers(self, **settings: Any) -> Commands:  # type: ignore[override]
        commands: Commands = super().add_subparsers(parser_class=Parser, **settings)
        self.subcommands.append(commands)
        return commands

    def add_input(
        self,
        dest: str,
        option: str,
        help: str,
        *,
        metavar: str = "",
        type: Callable[[str], Any] = str,
        many: bool = False,
        word: bool = True,
        default: Any = None,
        remedy: str = "",
        old: str = "",
    ) -> None:
        """Adds a path or a name that is given as `option` or, if `word`, as a word.

        Args:
            dest: its name in the namespace.
            option: such as `--model`; empty for an input that is always a word.
            metavar: default: the option in capital letters.
            many: takes several values, as a list.
            default: of an input that is never a word.
            remedy: what to give where it is missing; empty if it may be missing.
            old: another name of the option, from 0.5, which is not shown.
        """
        metavar = metavar or option.removeprefix("--").upper()
        several: dict[str, Any] = {"nargs": "+"} if many else {}
        if option:
            action = self.add_argument(
                option, dest=dest, type=type, default=default, metavar=metavar, help=help, **several
            )
            self.paths.append(action)
        if old:
            self.add_argument(old, dest=dest, type=type, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **several)
        if word:
            shown = f"the same as {option}" if option else help
            action = self.add_argument(f"{dest}_word", nargs="*" if many else "?", metavar=metavar, help=shown)
            self.paths.append(action)
            self._words.append(action.dest)
            self.set_defaults(**{dest: None})
        self._inputs.append(_Input(dest, option or metavar, type, many, word, remedy))

    def add_keys(self, example: str) -> None:
        """Adds the words `key=value`, which end up in `overrides`."""
        self.add_argument("overrides", nargs="*", metavar="key=value", help=example)
        self._words.append("overrides")
        self._takes_keys = True

    def place(self, args: argparse.Namespace, rest: list[str]) -> None:
        """Gives the words of a parsed command line, and those that were left over, to keys and inputs."""
        unknown = [word for word in rest if word.startswith("-")]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        words: list[str] = []
        for dest in self._words:
            value = getattr(args, dest)
            words += value if isinstance(value, list) else [] if value is None else [value]
            delattr(args, dest)
        words += rest
        if self._takes_keys:
            if args.keys and _KEY.match(args.keys):
                words, args.keys = [args.keys, *words], ""
            args.overrides = [word for word in words if _KEY.match(word)]
            words = [word for word in words if not _KEY.match(word)]
        for each in self._inputs:
            if each.word and getattr(args, each.dest) is None and words:
                taken = words if each.many else words[:1]
                values = [each.type(word) for word in taken]
                setattr(args, each.dest, values if each.many else values[0])
                words = words[len(taken) :]
        if words:
            self.error(f"unrecognized arguments: {' '.join(words)}")
        self._require(args)

    def _require(self, args: argparse.Namespace) -> None:
        for each in self._inputs:
            if getattr(args, each.dest) is not None or not each.remedy:
                continue
            if self._takes_keys and args.keys is not None:
                if not args.keys:
                    continue
                setattr(args, each.dest, each.type(args.keys))  # `evaluate --keys knn`
                args.keys = ""
                continue
            self.fail(f"{each.option} is missing; give {each.remedy}")

    def error(self, message: str) -> NoReturn:
        """Ends with status 2 and one line, which names the help."""
        self.fail(f"{message}; see {self.prog} --help")

    def fail(self, message: str, status: int = 2) -> NoReturn:
        """Ends with a status and one line without any token, which the processes of one launch print once."""
        self.end(message, status, "error: ")

    def end(self, message: str, status: int, kind: str = "") -> NoReturn:
        """Ends with a status and one line below the progress bars."""
        line = masked(" ".join(message.split("\n")))
        _close_bars()
        if _is_first_to_say(line):
            if os.environ.get("LOCAL_RANK", "0") != "0":
                print(file=sys.stderr)  # the main process may have left its bar on this line
            print(f"{self.prog.split()[0]}: {kind}{line}", file=sys.stderr, flush=True)
        raise SystemExit(status)


def _close_bars() -> None:
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in list(tqdm.tqdm._instances):
            bar.close()


def _is_first_to_say(line: str) -> bool:
    """Whether no other process on this machine that torchrun or accelerate started with this one has said `line`.

    Leaves the line for the launcher too, whose report ends with it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <folder of the launch>/<local rank>/error.json
    if not path:
        return True
    said = re.sub(r"^process \d+: ", "", line)  # what others repeat of the process that failed
    try:
        report = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": report}))
        marker = Path(path).parents[1] / f"said-{hashlib.sha256(said.encode()).hexdigest()}"
        with open(marker, "x"):
            return True
    except FileExistsError:
        return False
    except OSError:  # the launcher keeps no files
        return True
