"""`dinov2-hf pretrain` and `dinov2-hf distill`, and the examples of the same names."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from ..config import RUNS, load_config, models_of, sections_of
from .arguments import SOURCES, add_device, add_images, add_imports, add_keys, add_model, add_output, overrides_of
from .parser import Commands, Parser
from .running import execute

if TYPE_CHECKING:
    from ..api import Run

_LAUNCH = "With several processes: accelerate launch -m dinov2_hf {} …"


def add_pretrain(commands: Commands) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="train a backbone on your images, without labels",
        about="Train a backbone on images without labels, and write a folder that stock transformers loads. The same "
        f"command continues a run that was stopped. {_LAUNCH.format('pretrain')}",
        example="dinov2-hf pretrain /my/images --output runs/mine model.preset=small train.epochs=10",
    )
    _add_arguments(parser, "dinov2")


def add_distill(commands: Commands) -> None:
    parser = commands.add_parser(
        "distill",
        help="train small backbones to imitate a large one",
        about="Train one or several small backbones to imitate a frozen teacher, on images without labels. The same "
        f"command continues a run that was stopped. {_LAUNCH.format('distill')}",
        example="dinov2-hf distill /my/images --model facebook/dinov2-large --output runs/small \\\n"
        "    objective=distill_features crops.num_local=0",
    )
    _add_arguments(parser, "distill_prototypes")


def train(description: str, objective: str) -> None:
    """Runs an example of the command line `sys.argv`: trains, and says what the run left in `train.output_dir`.

    Args:
        description: for `--help`.
        objective: of a configuration that names none.
    """
    parser = Parser(description=description)
    _add_arguments(parser, objective)
    execute(parser, sys.argv[1:])


def _add_arguments(parser: Parser, objective: str) -> None:
    """Adds what a training run takes; `objective` is that of a configuration that names none."""
    distills = objective.startswith("distill")
    add_images(parser, "images to train on: the key data.train.path")
    if distills:
        add_model(parser, f"the teacher: the key distill.teacher; {SOURCES}")
    else:
        add_model(parser, f"weights to start from: the key init.path; {SOURCES}")
    add_output(parser, "folder of the run: the key train.output_dir")
    add_device(parser)
    add_imports(parser)
    add_keys(parser, "train.epochs=10 optim.base_lr=1e-3", _sections)
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: continue from the newest checkpoint in the folder of the run if there is one (default); never: "
        "refuse a folder that has one; or the path of a checkpoint",
    )
    parser.set_defaults(run=_run, objective=objective, model_key="distill.teacher" if distills else "init.path")


def _sections(args: argparse.Namespace) -> Any:
    return sections_of(args.config, args.overrides, RUNS[args.objective])


def overrides(args: argparse.Namespace) -> list[str]:
    return overrides_of(args, {"data": "data.train.path", "model": args.model_key, "output": "train.output_dir"})


def _run(args: argparse.Namespace) -> None:
    config = load_config(args.config, overrides(args), RUNS[args.objective])

    from ..api import Training
    from ..api.process import computing_on

    with computing_on(args.device):
        training = Training(config, args.resume)
        try:
            done = training.run()
        except (OSError, FloatingPointError, ValueError) as error:  # a full disk, a run that diverges, broken images
            args.parser.fail(str(error), status=1)
        except RuntimeError as error:
            if not is_of_lost_process(error):
                raise
            args.parser.fail("another process of this launch has ended, and its error says why", status=1)
    if stopped_by := training.trainer.stopped_by:
        raise SystemExit(128 + stopped_by)  # as a shell reports it, so that a job script can tell it from the end
    if done.exports:
        print(describe(done))


def is_of_lost_process(error: RuntimeError) -> bool:
    """Whether an exchange between processes failed because another one ended."""
    import torch.distributed as dist

    closed = re.search(r"gloo.*(closed by peer|reset by peer|broken pipe)", str(error), re.IGNORECASE | re.DOTALL)
    return isinstance(error, dist.DistBackendError) or closed is not None


def describe(done: Run) -> str:
    """Returns the accuracies of a run, where its files are, and what to do next, as text."""
    from ..backbones import find_family
    from ..runs import RunFolder
    from ..weights import FORMATS

    lines, text = RunFolder(done.folder).read_metrics(), []
    network = "the student" if dict(models_of(done.config)).get("distill.teacher") else "the teacher"
    for student in done.exports:
        metric = f"{student}.knn_accuracy" if student else "knn_accuracy"
        named = {metric: student or network, f"{metric}/student": f"{student or 'the student'}, without averaging"}
        for name, who in named.items():
            accuracies = [line[name] for line in lines if name in line]
            if accuracies:
                first, last = accuracies[0], accuracies[-1]
                text.append(f"\nk-NN accuracy of {who}: {first:.1f} % at first, {last:.1f} % at the end")
    model, family = done.exports[""], find_family(done.config.model.family)
    arguments = ", ".join(filter(None, [f'"{model}"', family.loading]))
    files = [
        name for name, known in FORMATS.items() if known.suffix and family.name in (known.families or (family.name,))
    ]
    others = f"   # or {', '.join(files[1:])}" if files[1:] else ""
    text += [
        f"Curves and pictures:  {', '.join(map(str, done.pictures))}",
        f"Metrics:              {done.folder / 'metrics.jsonl'} (TensorBoard: tensorboard --logdir {done.folder})",
        *(f"Model:                {folder}" for folder in done.exports.values()),
        "\nLoad it with nothing but transformers:\n",
        f"    from transformers import AutoModel, pipeline\n    model = AutoModel.from_pretrained({arguments})",
        f'    features = pipeline("image-feature-extraction", model="{model}")',
        "\nNext:\n",
        f"    dinov2-hf evaluate knn --model {done.folder} --data LABELLED_IMAGES",
        f"    dinov2-hf visualize pca IMAGE --model {done.folder}",
        *([f"    dinov2-hf export {done.folder} FILE --format {files[0]}{others}"] if files else []),
        f"    dinov2-hf push {done.folder} NAMESPACE/NAME --dry-run",
    ]
    return "\n".join(text)
