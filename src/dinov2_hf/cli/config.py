"""`dinov2-hf config`: the configuration that a command would use, and where each value comes from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_imports
from .parser import Commands

_COMMANDS = {"pretrain": "dinov2", "distill": "distill_prototypes"}
"""The objective of a configuration that names none, by command."""


def add_config(commands: Commands) -> None:
    parser = commands.add_parser(
        "config",
        help="print the configuration that would be used, and where each value comes from",
        about="Print every value of a configuration as YAML that --config reads back, checked as the command would "
        "check it, with a comment at each value: a default, the file, or the command line.",
        example="dinov2-hf config vits14_1gpu data.train.path=/my/images optim.base_lr=1e-3\n"
        "dinov2-hf config runs/mine\n"
        "dinov2-hf config --for knn train.path=/my/images",
    )
    parser.add_input(
        "source",
        "--config",
        "folder of a run or of a curation, name of a recipe, or YAML file (default: none, so only defaults and keys)",
        metavar="CONFIG",
    )
    parser.add_argument(
        "--for",
        dest="purpose",
        metavar="COMMAND",
        help="command that reads it: pretrain, distill, curate, or the name of an evaluator (default: what the folder "
        "or the recipe is for, else pretrain)",
    )
    parser.add_argument("--objective", metavar="NAME", help="objective of a run: the key objective")
    add_imports(parser)
    parser.add_keys("keys of the configuration, such as train.epochs=10")
    parser.set_defaults(run=print_config, keys=None)


def print_config(args: argparse.Namespace) -> None:
    from ..config.explain import explain
    from ..config.loading import load_with_origins

    source, purpose = _place_of(args.source, args.purpose)
    keys = [f"objective={args.objective}"] if args.objective else []
    print(explain(load_with_origins(source, keys + args.overrides, _kind_of(purpose))))


def _place_of(source: str | None, purpose: str | None) -> tuple[str | None, str]:
    """Returns the config file or the name of the recipe, and what it is for.

    Raises:
        FileNotFoundError: a folder without a configuration; no recipe of that name.
    """
    from ..config.layers import CURATION_FILE
    from ..config.recipes import find_recipe, recipes_folder
    from ..files import CONFIG_FILE

    if source is None:
        return None, purpose or "pretrain"
    path = Path(source)
    if path.is_dir():
        for name, command in ((CONFIG_FILE, "pretrain"), (CURATION_FILE, "curate")):
            if (path / name).is_file():
                return str(path / name), purpose or command
        raise FileNotFoundError(
            f"{source} has no {CONFIG_FILE} and no {CURATION_FILE}; give the folder of a run or of a curation, a "
            "recipe or a YAML file"
        )
    if path.is_file():
        inside = path.resolve().parent.parent == recipes_folder().resolve()
        return source, purpose or _purpose_of(path.parent.name if inside else "pretrain", path.stem)
    first = "evaluate" if purpose and purpose not in (*_COMMANDS, "curate") else purpose or "pretrain"
    recipe = find_recipe(source, first)
    return recipe.name, purpose or _purpose_of(recipe.kind, recipe.stem)


def _purpose_of(kind: str, stem: str) -> str:
    """The command that reads a recipe; of an evaluation the evaluator, with whose name the recipe begins."""
    from ..config.evaluations import evaluation_config

    if kind == "accelerate":
        return "pretrain"  # refused where it is read
    if kind != "evaluate":
        return kind
    words = stem.split("_")
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    return next((name for name in names if evaluation_config(name)), stem)


def _kind_of(purpose: str) -> type[Any]:
    """The configuration that a command reads.

    Raises:
        ValueError: there is neither a command nor an evaluator of that name.
    """
    from ..config.curation import CurationConfig
    from ..config.evaluations import evaluation_config
    from ..config.run import run_config_of

    if purpose in _COMMANDS:
        return run_config_of(_COMMANDS[purpose])
    if purpose == "curate":
        return CurationConfig
    if kind := evaluation_config(purpose):
        return kind
    from ..evaluation import find_evaluator  # one from outside the package

    return find_evaluator(purpose, "--for").config
