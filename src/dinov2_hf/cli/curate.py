"""`dinov2-hf curate`: from a pile of images to a training set."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Any

from ..config import load_config, sections_of
from ..config.curation import STAGES, CurationConfig
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

if TYPE_CHECKING:
    import torch

    from ..features import FeatureExtractor

KEYS = {"data": "pool.images.path", "model": "embed.model", "output": "output_dir"}


def add_curate(commands: Commands) -> None:
    parser = commands.add_parser(
        "curate",
        help="choose a training set out of a pile of images",
        about="Filter, deduplicate and choose images out of a pile of them, as DINOv2 did, and write them as shards to "
        "train on. Every stage continues where it was killed. See docs/curation.md.",
        example="dinov2-hf curate /my/pile --model facebook/dinov2-small --output runs/curated \\\n"
        "    seeds.birds.path=/my/birds",
    )
    add_images(parser, "images to choose from: the key pool.images.path; more sources by keys: pool.NAME.path")
    add_model(parser, f"model that embeds the images: the key embed.model; {SOURCES}")
    add_output(parser, "folder of the curation: the key output_dir")
    add_device(parser)
    add_imports(parser)
    add_keys(parser, "seeds.birds.path=/my/birds dedup.threshold=0.6", _sections)
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="run this stage only; embed and concepts also run under accelerate launch (default: all, in their order)",
    )
    parser.set_defaults(run=run_curate)


def _sections(args: argparse.Namespace) -> Any:
    return sections_of(args.config, args.overrides, CurationConfig)


def run_curate(args: argparse.Namespace) -> None:
    config = load_config(args.config, overrides_of(args, KEYS), CurationConfig)
    if args.device and config.executor.kind != "local":
        raise ValueError(
            f"--device {args.device} is for this machine and executor.kind={config.executor.kind} computes on others; "
            "set executor.gpus_per_task"
        )

    from ..api.process import computing_on
    from ..curation import curate

    without_bars()
    # so that processes which datatrove keeps beside its tasks end with this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with computing_on(args.device):
        curate(config, open_model, args.stage, lambda line: print(line, flush=True))
    if args.stage is None and config.executor.kind != "slurm":
        print(f"\nImages:  {config.output_dir}/images (README.md there has counts and settings)")
        print(f"Report:  {config.output_dir}/report/index.html")
        print(f"Train:   dinov2-hf pretrain {config.output_dir}/images --output … data.train.streaming=true")


def open_model(path: str, device: torch.device, dtype: torch.dtype, name: str) -> FeatureExtractor:
    """A backbone for the tasks of a curation, which import this function."""
    from ..features import open_backbone

    return open_backbone(path, device, dtype, name)
