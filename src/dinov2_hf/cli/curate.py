"""`dinov2-hf curate`: from a pile of images to a training set."""

from __future__ import annotations

import argparse
import signal
import sys

from ..config.curation import STAGES, CurationConfig
from .arguments import without_bars


def add_curate(commands) -> None:
    description = (
        "Filter, deduplicate and choose images out of a pile of them, as DINOv2 did, and write them as shards to train "
        "on. Every stage continues where it was killed. See docs/curation.md."
    )
    parser = commands.add_parser("curate", help="from a pile of images to a training set", description=description)
    parser.add_argument("--config", help="YAML file; what it leaves out keeps its default")
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="this stage alone; embed and concepts run under `accelerate launch`, too (default: all, in their order)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="such as pool.web.path=/my/images output_dir=/out"
    )
    parser.set_defaults(run=run_curate)


def run_curate(args: argparse.Namespace) -> None:
    from ..config import load_config

    config = load_config(args.config, args.overrides, CurationConfig)

    from ..curation import curate

    without_bars()
    # so that processes which datatrove keeps beside its tasks end with this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    curate(config, open_model, args.stage, lambda line: print(line, flush=True))
    if args.stage is None and config.executor.kind != "slurm":
        print(f"\nImages:  {config.output_dir}/images (README.md there has counts and settings)")
        print(f"Report:  {config.output_dir}/report/index.html")
        print("Train:   accelerate launch examples/pretrain.py --config … \\")
        print(f"             data.train.path={config.output_dir}/images data.train.streaming=true")


def open_model(path, device, dtype, name):
    """A backbone for the tasks of a curation, which import this function."""
    from ..features import open_backbone

    return open_backbone(path, device, dtype, name)
