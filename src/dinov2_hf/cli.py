"""The command `dinov2-hf`."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .config import PretrainConfig, load_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; what a user can mend ends it with one line and status 2."""
    parser = argparse.ArgumentParser(prog="dinov2-hf", description="Tools around training DINOv2 on your images.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    data = commands.add_parser("data", help="look at images before training on them")
    actions = data.add_subparsers(dest="action", required=True, metavar="action")

    stats = _action(
        actions,
        "stats",
        data_stats,
        "sizes, broken files, mean and deviation, throughput; prints the config lines to use",
    )
    stats.add_argument("--images", type=_positive, default=2000, help="images to read (default: 2000)")
    stats.add_argument("--workers", type=int, default=2, help="processes that read; 0 for this one (default: 2)")
    show = _action(actions, "show", data_show, "draw a batch: crops as the model sees them, masks on them")
    show.add_argument("--images", type=_positive, default=6, help="images, a row each (default: 6)")
    show.add_argument("--output", type=Path, default=Path("batch.png"), help="PNG to write (default: batch.png)")

    _add_export(commands)
    _add_inspect(commands)
    _add_push(commands)

    args, rest = parser.parse_known_args(arguments)  # overrides may stand after options too
    unknown = [item for item in rest if item.startswith("-") or "=" not in item or "overrides" not in args]
    if unknown:
        shown = re.sub(r"hf_\w{10,}", "[token]", " ".join(unknown))
        parser.error(f"unrecognized arguments: {shown}")
    if rest:
        args.overrides += rest
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except ImportError as error:
        if "dinov2_hf[" not in str(error):  # says which extra to install
            raise
        parser.error(str(error))


def data_stats(args: argparse.Namespace) -> None:
    from .data.stats import describe, measure_source

    config = _config(args)
    print(describe(measure_source(config, args.images, args.workers), config, args.workers))


def data_show(args: argparse.Namespace) -> None:
    from .data.sheet import draw_sheet

    for message in draw_sheet(_config(args), args.images, args.output):
        print(f"skipped an image that cannot be decoded: {message}")
    print(f"{args.output}: {args.images} images, masked patches in red")


def export(args: argparse.Namespace) -> None:
    from .exchange import export_source

    _without_bars()
    done = export_source(
        args.source, args.output, args.format, args.network, args.student, args.num_attention_heads, args.image_size
    )
    print(f"{done.output}: {args.format}, from {args.source} ({done.kind})")
    for remark in done.remarks:
        print(f"note: {remark}")
    print(f"Load it with:\n\n{textwrap.indent(done.usage, '    ')}")


def inspect(args: argparse.Namespace) -> None:
    from .exchange import inspect_path

    _without_bars()
    print(inspect_path(args.path))


_SOURCES = (
    "a run's output folder or one of its checkpoints, an export, a folder that transformers loads or its name on the "
    "Hub, an original .pth file, a file under timm's names, an ONNX file of ours"
)


def _add_export(commands) -> None:
    description = "Write a model in another format, or the model of a run. Nothing is written where it fails."
    parser = commands.add_parser(
        "export", help="write a model for transformers, torch.hub, timm, ONNX", description=description
    )
    parser.add_argument("source", metavar="SOURCE", help=_SOURCES)
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="folder (hf) or file to write; nothing may be there"
    )
    parser.add_argument(
        "--format",
        choices=("hf", "original", "timm", "onnx"),
        default="hf",
        help="hf: a folder for transformers, with heads, preprocessor and model card (default); original: .pth for "
        "torch.hub code; timm: .safetensors; onnx: .onnx with any batch and size",
    )
    parser.add_argument(
        "--network",
        choices=("teacher", "student"),
        default="teacher",
        help="of a run or training state (default: teacher)",
    )
    parser.add_argument("--student", default="", metavar="NAME", help="a further student of a distillation")
    parser.add_argument(
        "--num-attention-heads", type=_positive, metavar="N", help="where a file does not tell (default: width / 64)"
    )
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="N or HxW",
        help="resample the position embeddings to this size first (default: as they are)",
    )
    parser.set_defaults(run=export)


def _add_inspect(commands) -> None:
    description = "Tell what a file or folder holds, and which command reads it."
    parser = commands.add_parser("inspect", help="tell what a file or folder holds", description=description)
    parser.add_argument("path", metavar="PATH", help=_SOURCES)
    parser.set_defaults(run=inspect)


def _without_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def push(args: argparse.Namespace) -> None:
    from .hub import push_folder

    result = push_folder(
        args.folder,
        args.repo_id,
        revision=args.revision,
        tag=args.tag,
        private=args.private,
        message=args.message,
        dry_run=args.dry_run,
    )
    print(result.describe())


def _add_push(commands) -> None:
    """There is no option for the token: command lines are seen by others on the machine, and kept by shells."""
    description = (
        "Bring a repository on the Hub to what an export holds. The access token is that of HF_TOKEN or of `hf auth "
        "login`. After an upload that broke off, the same command sends the rest."
    )
    parser = commands.add_parser("push", help="upload an exported model to the Hub", description=description)
    parser.add_argument("folder", type=Path, help="an export, or the output folder of a run that has one")
    parser.add_argument("repo_id", help="namespace/name, made if it does not exist")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", default=None, help="make it private; refused if it is public")
    seen.add_argument(
        "--public", action="store_false", dest="private", default=None, help="make it public, if it does not exist"
    )
    parser.add_argument("--revision", default="main", help="branch, made if it does not exist (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v1")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list what would go, without any network")
    parser.set_defaults(run=push)


def _action(actions, name: str, run, description: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=description, description=description[0].upper() + description[1:] + ".")
    parser.add_argument("--config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.train.path=/my/images")
    parser.set_defaults(run=run)
    return parser


def _config(args: argparse.Namespace) -> PretrainConfig:
    """The run's configuration, in which other channels than three need no mean and deviation yet."""
    overrides = list(args.overrides)
    channels = [match[1] for item in overrides if (match := re.fullmatch(r"model\.num_channels=(\d+)", item))]
    if channels:
        count = int(channels[-1])
        overrides = [f"colors.mean={[0.0] * count}", f"colors.std={[1.0] * count}", *overrides]
    return load_config(args.config, overrides)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give pixels such as 224 or 224x280")
    return int(match[1]), int(match[2] or match[1])


if __name__ == "__main__":
    main()
