"""`dinov2-hf evaluate`: what frozen features can do."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from ..config import images_of
from ..config.evaluations import EvaluationConfig
from ..files import Output, check_outputs, made_anything, made_classifier, made_evaluation
from .arguments import SOURCES, without_bars


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


def _run(args: argparse.Namespace, evaluator) -> None:
    import torch

    from ..config import TrainConfig, load_config
    from ..evaluation import Evaluation, run_evaluator
    from ..features import open_backbone
    from ..hub import add_results, card_of
    from ..train import build_accelerator
    from ..train.accelerator import compute_dtype

    named = {"train.path": args.data, "test.path": args.test or args.data}
    named |= {"output_dir": args.output, "cache_dir": args.cache}
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None] + args.overrides
    config = load_config(args.config, overrides, evaluator.config)
    if args.model is None:
        raise ValueError("--model is missing; give a run, an export, a model on the Hub or a file")
    if args.card and not config.output_dir:
        raise ValueError("--card takes its metrics from --output; give both")
    if args.card:
        card_of(args.card)
    _check_paths(args, config, evaluator.trains)
    without_bars()
    accelerator = build_accelerator(TrainConfig(precision=config.precision))
    dtype = compute_dtype(accelerator)
    backbone = open_backbone(args.model, accelerator.device, torch.float32 if evaluator.trains else dtype)
    output = Path(config.output_dir) if config.output_dir else None
    half = dtype if dtype == torch.float32 else torch.float16
    report = run_evaluator(evaluator, Evaluation(backbone, config, accelerator, output, half))
    if accelerator.is_main_process:
        print(f"\n{report.table()}\n\n{report.seconds:.1f} s")
        if output:
            report.save(output)
            print(f"Results:    {output / 'results.json'}, {output / 'results.md'}")
        if report.broken:
            listed = f", listed in {output / 'broken.txt'}" if output else ", named above"
            print(f"Broken:     {len(report.broken):,} left out{listed}")
        if args.card:
            add_results(args.card, [output])
            print(f"Model card: {args.card / 'README.md'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _check_paths(args: argparse.Namespace, config: EvaluationConfig, trains: bool) -> None:
    """Refuses results and features in the place of what is read."""
    outputs = []
    if config.output_dir:
        output, key = Path(config.output_dir), "--output" if args.output else "output_dir"
        outputs.append(Output(key, output, made_evaluation, folder=True))
        if trains:
            outputs.append(Output(key, output / "model", made_classifier, folder=True))
    if config.cache_dir:
        outputs.append(
            Output(
                "--cache" if args.cache else "cache_dir",
                Path(config.cache_dir).expanduser(),
                made_anything,
                folder=True,
            )
        )
    files = [("--config", args.config)] if args.config else []
    check_outputs(outputs, images_of(config), [("--model", args.model)], files)


def _describe(config: type) -> str:
    """Every key with its default and what its docstring says."""
    from ..config import describe_keys

    lines = [(config.__doc__ or "").strip(), ""]
    for key, default, text in describe_keys(config):
        lines += [f"{key}={default}", textwrap.indent(textwrap.fill(text, 112), "    ")]
    return "\n".join(lines)
