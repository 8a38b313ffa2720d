"""The command line of a training run: arguments in, text out."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from ..api import Run, Training
from ..config import RUNS, load_config, masked, refuse_tokens_in_arguments
from ..runs import RunFolder


def train(description: str, objective: str) -> None:
    """Parses the command line, trains, and says what the run left in `train.output_dir`.

    Args:
        description: for `--help`.
        objective: of a configuration that names none.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file; what it leaves out keeps its default")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: continue from the newest checkpoint in train.output_dir if there is one (default); "
        "never: refuse a folder that has one; or the path of a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    try:
        refuse_tokens_in_arguments(sys.argv[1:])
    except ValueError as error:
        parser.error(str(error))
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)
    try:
        config = load_config(args.config, args.overrides, RUNS[objective])
        training = Training(config, args.resume)
    except (ValueError, OSError) as error:  # what a user can fix
        parser.error(masked(str(error)))
    try:
        done = training.run()
    except (OSError, FloatingPointError, ValueError) as error:  # a full disk, a run that diverges, broken images
        raise SystemExit(f"{parser.prog}: error: {masked(str(error))}") from None
    if done.stopped:
        raise SystemExit(128 + signal.SIGTERM)  # as a shell reports it, so that a job script can tell it from the end
    if done.exports:
        print(describe(done))


def describe(done: Run) -> str:
    """Returns the accuracies of a run and where its files are, as text."""
    lines, text = RunFolder(done.folder).read_metrics(), []
    for student in done.exports:
        metric = f"{student}.knn_accuracy" if student else "knn_accuracy"
        accuracies = [line[metric] for line in lines if metric in line]
        if accuracies:
            first, last = accuracies[0], accuracies[-1]
            what = student or "the moving average"
            text.append(f"\nk-NN accuracy of {what}: {first:.1f} % at first, {last:.1f} % at the end")
    text.append(f"Curves and pictures:  {', '.join(map(str, done.pictures))}")
    text.append(
        f"Metrics:              {done.folder / 'metrics.jsonl'} (TensorBoard: tensorboard --logdir {done.folder})"
    )
    text += [f"Model:                {folder}" for folder in done.exports.values()]
    first_export = done.exports[""]
    text += [
        "\nLoad it with nothing but transformers:\n",
        f'    from transformers import AutoModel, pipeline\n    model = AutoModel.from_pretrained("{first_export}")',
        f'    features = pipeline("image-feature-extraction", model="{first_export}")',
    ]
    return "\n".join(text)
