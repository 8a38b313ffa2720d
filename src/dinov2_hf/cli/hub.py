"""`dinov2-hf push`: an export to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path


def push(args: argparse.Namespace) -> None:
    from ..hub import push_folder

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


def add_push(commands) -> None:
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
