"""`dinov2-hf evaluate`: what frozen features can do."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ..config import load_config, sections_of
from ..config.evaluations import EvaluationConfig, evaluation_config
from ..files import Output, check_outputs, made_anything
from .arguments import (
    SOURCES,
    add_device,
    add_images,
    add_imports,
    add_keys,
    add_model,
    add_output,
    overrides_of,
    without_bars,
)
from .parser import Commands

KEYS = {"data": "train.path", "test": "test.path", "output": "output_dir", "cache": "cache_dir"}


def add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure frozen features: k-NN, probes, retrieval, segmentation, depth, …",
        about="Evaluate a backbone on labelled images, as the papers do. With several processes: accelerate launch -m "
        "dinov2_hf evaluate …",
        example="dinov2-hf evaluate knn --model runs/mine --data /my/labelled/images --output runs/knn",
    )
    parser.add_input(
        "evaluator",
        "",
        "name of the evaluator; list: print all of them",
        metavar="NAME",
        remedy="the name of an evaluator; dinov2-hf evaluate list prints all",
    )
    add_model(parser, SOURCES + "; or any vision transformer that AutoModel loads")
    add_images(parser, "images to learn from or compare with: the key train.path", word=False)
    parser.add_argument("--test", metavar="PATH", help="images that are evaluated: the key test.path (default: --data)")
    add_output(parser, "folder for results.json and results.md: the key output_dir")
    add_device(parser)
    add_imports(parser)
    add_keys(parser, "test.split=test", _sections)
    parser.add_argument("--cache", metavar="DIR", help="folder where features are kept for the next time: cache_dir")
    parser.add_argument("--card", type=Path, metavar="EXPORT", help="an export whose model card takes the results")
    parser.set_defaults(run=evaluate)


def _kind(args: argparse.Namespace) -> type[EvaluationConfig]:
    """The configuration of the evaluator; imports evaluators only where it is not one of the package."""
    kind = evaluation_config(args.evaluator)
    if kind is None:
        from ..evaluation import find_evaluator

        kind = find_evaluator(args.evaluator).config
    return kind


def _sections(args: argparse.Namespace) -> Any:
    return sections_of(args.config, args.overrides, _kind(args))


def evaluate(args: argparse.Namespace) -> None:
    if args.evaluator == "list":
        from ..evaluation import evaluators

        for name, each in evaluators().items():
            print(f"{name:20} {each.title}" + f" ({each.source})" * bool(each.source))
        return
    overrides = overrides_of(args, KEYS)
    if args.data and not args.test:
        overrides = [f"test.path={json.dumps(args.data)}", *overrides]
    output = load_config(args.config, overrides, _kind(args)).output_dir
    if args.model is None:
        raise ValueError("--model is missing; give a run, an export, a model on the Hub or a file")
    if args.card and not output:
        raise ValueError("--card takes its metrics from --output; give both")

    from ..api import evaluate as evaluate_model
    from ..hub import add_results, card_of

    if args.card:
        check_outputs([Output("--card", args.card, made_anything, folder=True)])
        card_of(args.card)
    without_bars()
    report = evaluate_model(args.model, args.evaluator, config=args.config, keys=overrides, device=args.device)
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"\n{report.table()}\n\n{report.seconds:.1f} s")
    if output:
        print(f"Results:    {Path(output) / 'results.json'}, {Path(output) / 'results.md'}")
    if report.broken:
        listed = f", listed in {Path(output) / 'broken.txt'}" if output else ", named above"
        print(f"Broken:     {len(report.broken):,} left out{listed}")
    if args.card and output:
        add_results(args.card, [Path(output)])
        print(f"Model card: {args.card / 'README.md'}")
