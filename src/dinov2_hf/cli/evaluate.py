"""`dinov2-hf evaluate`: what frozen features can do."""

from __future__ import annotations

import argparse
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import load_config
from .arguments import SOURCES, without_bars

if TYPE_CHECKING:
    from ..evaluation import Evaluator


def add_evaluate(commands) -> None:
    description = (
        "Evaluate a backbone on labelled images, as the papers do. With several processes: accelerate "
        "launch -m dinov2_hf.cli evaluate …"
    )
    parser = commands.add_parser(
        "evaluate",
        help="k-NN, probes, retrieval, segmentation, depth, … of frozen features",
        description=description,
    )
    parser.add_argument(
        "evaluator", metavar="NAME", help="of the evaluator; `list` prints all, and NAME --keys the keys of one"
    )
    parser.add_argument("--model", metavar="MODEL", help=SOURCES + "; or any vision transformer that AutoModel loads")
    parser.add_argument("--data", metavar="PATH", help="images to learn from or compare with: train.path")
    parser.add_argument("--test", metavar="PATH", help="images that are evaluated: test.path (default: --data)")
    parser.add_argument("--config", metavar="FILE", help="YAML file; what it leaves out keeps its default")
    parser.add_argument("--output", metavar="DIR", help="folder for results.json and results.md: output_dir")
    parser.add_argument("--cache", metavar="DIR", help="folder where features are kept for the next time: cache_dir")
    parser.add_argument("--card", type=Path, metavar="EXPORT", help="an export whose model card takes the results")
    parser.add_argument(
        "--keys", action="store_true", help="print the keys of the evaluator with their defaults, and end"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the configuration, such as test.split=test"
    )
    parser.set_defaults(run=evaluate)


def evaluate(args: argparse.Namespace) -> None:
    from ..evaluation import evaluators, find_evaluator

    if args.evaluator == "list":
        for name, each in evaluators().items():
            print(f"{name:20} {each.title}" + f" ({each.source})" * bool(each.source))
        return
    evaluator = find_evaluator(args.evaluator)
    if args.keys:
        print(_describe(evaluator.config))
        return
    _run(args, evaluator)


def _run(args: argparse.Namespace, evaluator: Evaluator) -> None:
    from ..api import evaluate as evaluate_model
    from ..hub import add_results, card_of

    named = {"train.path": args.data, "test.path": args.test or args.data}
    named |= {"output_dir": args.output, "cache_dir": args.cache}
    keys = [f"{key}={value}" for key, value in named.items() if value is not None] + args.overrides
    output = load_config(args.config, keys, evaluator.config).output_dir
    if args.model is None:
        raise ValueError("--model is missing; give a run, an export, a model on the Hub or a file")
    if args.card and not output:
        raise ValueError("--card takes its metrics from --output; give both")
    if args.card:
        card_of(args.card)
    without_bars()
    report = evaluate_model(args.model, evaluator.name, config=args.config, keys=keys)
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


def _describe(config: type) -> str:
    """Every key with its default and what its docstring says."""
    from ..config import describe_keys

    lines = [(config.__doc__ or "").strip(), ""]
    for key, default, text in describe_keys(config):
        lines += [f"{key}={default}", textwrap.indent(textwrap.fill(text, 112), "    ")]
    return "\n".join(lines)
