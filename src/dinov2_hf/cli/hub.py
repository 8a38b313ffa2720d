"""`dinov2-hf push`: an export to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_model
from .parser import Commands


def push(args: argparse.Namespace) -> None:
    from ..hub import push_folder

    result = push_folder(
        Path(args.model),
        args.repo_id,
        revision=args.revision,
        tag=args.tag,
        private=args.private,
        message=args.message,
        dry_run=args.dry_run,
    )
    print(result.describe())


def add_push(commands: Commands) -> None:
    """There is no option for the token: command lines are seen by others on the machine, and kept by shells."""
    parser = commands.add_parser(
        "push",
        help="upload an exported model to the Hub",
        about="Make a repository on the Hub hold what an export holds. The access token is that of HF_TOKEN or of "
        "`hf auth login`. After an upload that broke off, the same command sends the rest.",
        example="dinov2-hf push runs/mine me/vits14-mine --private --dry-run",
    )
    add_model(
        parser,
        "an export, or the output folder of a run that has one",
        word=True,
        remedy="an export, or the output folder of a run that has one",
    )
    parser.add_input(
        "repo_id",
        "--repo",
        "namespace/name of the repository, made if it does not exist",
        remedy="namespace/name of the repository",
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", default=None, help="make it private; refused if it is public")
    seen.add_argument(
        "--public", action="store_false", dest="private", default=None, help="make it public, if it does not exist"
    )
    parser.add_argument("--revision", default="main", help="branch, made if it does not exist (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v1")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, without any network")
    parser.set_defaults(run=push)
