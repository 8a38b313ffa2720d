"""`dinov2-hf export` and `dinov2-hf inspect`: models in and out of other formats."""

from __future__ import annotations

import argparse
import textwrap

from .arguments import add_imports, add_model, add_output, positive, size_of, without_bars
from .parser import Commands


def add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model for transformers, torch.hub, timm or ONNX",
        about="Write a model in another format, or the model of a run. Writes nothing where it fails.",
        example="dinov2-hf export runs/mine mine.safetensors --format timm",
    )
    add_model(parser, word=True, remedy="a run, an export, a model on the Hub or a file")
    add_output(
        parser,
        "folder (hf) or file to write; nothing may be there",
        word=True,
        remedy="the folder (hf) or the file to write",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
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
        "--num-attention-heads", type=positive, metavar="N", help="where a file does not say (default: width / 64)"
    )
    parser.add_argument(
        "--image-size",
        type=size_of,
        metavar="N or HxW",
        help="resample the position embeddings to this size first (default: as they are)",
    )
    add_imports(parser)
    parser.set_defaults(run=export)


def add_inspect(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="say what a file or folder holds",
        about="Say what a file or folder holds, and which command reads it. Runs no code from it.",
        example="dinov2-hf inspect runs/mine",
    )
    add_model(parser, word=True, metavar="PATH", remedy="a file, a folder or a model on the Hub")
    add_imports(parser)
    parser.set_defaults(run=inspect)


def export(args: argparse.Namespace) -> None:
    from ..weights import export_source

    without_bars()
    done = export_source(
        args.model, args.output, args.format, args.network, args.student, args.num_attention_heads, args.image_size
    )
    print(f"{done.output}: {args.format}, from {args.model} ({done.kind})")
    for remark in done.remarks:
        print(f"note: {remark}")
    print(f"Load it with:\n\n{textwrap.indent(done.usage, '    ')}")


def inspect(args: argparse.Namespace) -> None:
    from ..weights import inspect_path

    without_bars()
    print(inspect_path(args.model))
