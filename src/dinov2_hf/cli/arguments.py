"""What commands share: the options of the grammar in docs/command_line.md, one function each, and what they mean."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .parser import Parser

SOURCES = (
    "a run's output folder or one of its checkpoints, an export, a folder that transformers loads or its name on the "
    "Hub, an original .pth file, a file under timm's names, an ONNX file of ours"
)
_WIDTH = 112


def add_model(
    parser: Parser, help: str = SOURCES, *, word: bool = False, metavar: str = "MODEL", remedy: str = ""
) -> None:
    """Adds the model that the command reads: `--model`, or a word if it is the main input."""
    parser.add_input("model", "--model", help, metavar=metavar, word=word, remedy=remedy)


def add_images(
    parser: Parser, help: str, *, word: bool = True, many: bool = False, remedy: str = "", old: str = ""
) -> None:
    """Adds the images that the command reads: `--data`, or words if they are the main input."""
    parser.add_input("data", "--data", help, word=word, many=many, remedy=remedy, old=old)


def add_output(parser: Parser, help: str, *, word: bool = False, default: Path | None = None, remedy: str = "") -> None:
    """Adds the file or folder that the command writes: `--output`."""
    parser.add_input("output", "--output", help, type=Path, word=word, default=default, remedy=remedy)


def add_device(parser: Parser) -> None:
    """Adds what the command computes on: `--device`; `api.process.computing_on` applies it."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, … (default: a GPU where there is one)"
    )


def add_imports(parser: Parser) -> None:
    """Adds `--import`; `import_parts` applies it before the command runs."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="import a .py file or an installed module with parts of your own (docs/extend) first; may be repeated",
    )


def import_parts(names: Iterable[str]) -> None:
    """Imports modules, and `.py` files under the name of the file, which register their parts.

    Raises:
        FileNotFoundError: no file there.
        ValueError: no module of that name is installed, or another module has the name of the file.
    """
    for name in names:
        path = Path(name).expanduser().resolve() if name.endswith(".py") else None
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"--import {name} does not exist; give a .py file or the name of a module")
        if path is not None and str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # data workers that are spawned import it by its name
        module = name if path is None else path.stem
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there and imports another that is not
            raise ValueError(
                f"--import {name}: there is no module {error.name}; install it, or give the path of a .py file"
            ) from None
        if path is not None and Path(found.__file__ or "").resolve() != path:
            raise ValueError(f"--import {name}: another module is called {module} ({found.__file__}); rename the file")


def add_keys(parser: Parser, example: str, sections: Callable[[argparse.Namespace], Any]) -> None:
    """Adds the configuration: `--config`, the words `key=value`, and `--keys`, which prints what can be set.

    Args:
        example: such as `train.epochs=10`.
        sections: returns the configuration that the arguments choose, with its defaults, see `config.sections_of`.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, or the name of a recipe; other keys keep their defaults"
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="print every key, or those of a section, with its default and its meaning, and end",
    )
    parser.add_keys(f"keys of the configuration, such as {example}")
    parser.set_defaults(sections=sections)


def overrides_of(args: argparse.Namespace, keys: Mapping[str, str]) -> list[str]:
    """Returns the overrides of a configuration: those that options set, then the words `key=value`.

    Args:
        keys: the key that an option sets, by the name of the option in `args`, such as `{"data": "data.train.path"}`.

    Raises:
        ValueError: an option and a word set the same key; `key=null`, which unsets it, is taken.
    """
    found = []
    for dest, key in keys.items():
        value = getattr(args, dest)
        if value is None:
            continue
        for override in args.overrides:
            if override.startswith(f"{key}=") and override != f"{key}=null":
                raise ValueError(f"--{dest} {value} and {override} set the same key; remove one of them")
        found.append(f"{key}={json.dumps(str(value), ensure_ascii=False)}")
    return found + list(args.overrides)


def describe_sections(config: Any, section: str = "") -> str:
    """Returns every key of a configuration, or those of a section, with its default and what its docstring says.

    Raises:
        ValueError: there is no such section.
    """
    from ..config import describe_keys

    known = list(describe_keys(config))
    wanted = section.rstrip(".")
    shown = [item for item in known if not wanted or item[0] == wanted or item[0].startswith(f"{wanted}.")]
    if not shown:
        sections = dict.fromkeys(key.partition(".")[0] for key, _, _ in known)
        raise ValueError(f"--keys {section}: there is no such section; choose one of {', '.join(sections)}")
    lines = [] if wanted else [(config.__doc__ or "").strip(), ""]
    for key, default, text in shown:
        lines += [f"{key}={default}", textwrap.indent(textwrap.fill(text, _WIDTH), "    ")]
    return "\n".join(lines)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def size_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give pixels such as 224 or 224x280")
    return int(match[1]), int(match[2] or match[1])


def without_bars() -> None:
    """Switches off the bars of transformers while it reads weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
