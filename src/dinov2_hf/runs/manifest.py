"""The list of a checkpoint's files with their sizes and SHA-256: written once, compared at every reading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import lies_in, sync

NAME = "manifest.json"
_LARGE = ".distcp"
_CHUNK = 2**20


@dataclass(frozen=True)
class Entry:
    """What a file was when it was written."""

    size: int
    """Bytes."""
    sha256: str


Manifest = dict[str, Entry]


def list_files(paths: Iterable[Path]) -> Manifest:
    """Reads files whole and returns their sizes and checksums by name.

    Raises:
        OSError: a file that cannot be read.
    """
    return {path.name: Entry(path.stat().st_size, sha256_of(path)) for path in sorted(paths)}


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, files: Manifest) -> None:
    """Writes `manifest.json` into `folder` and returns when it is on the disk."""
    path = folder / NAME
    listed = {name: asdict(files[name]) for name in sorted(files)}
    path.write_text(json.dumps({"files": listed}, indent=1) + "\n")
    sync(path)


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it cannot be read, or holds something else.
    """
    try:
        files = json.loads((folder / NAME).read_text())["files"]
        found = {name: Entry(**entry) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{NAME} is not a list of files with sizes and checksums") from None
    for name, entry in found.items():
        whole = isinstance(entry.size, int) and isinstance(entry.sha256, str)
        if not whole or not re.fullmatch("[0-9a-f]{64}", entry.sha256) or Path(name).name != name:
            raise ValueError(f"{NAME} has an odd entry {name!r}")
    return found


def find_difference(folder: Path, files: Manifest) -> str | None:
    """What differs from the manifest in `folder`: names and sizes of all files, the contents of the small ones.

    Files that are not listed do not count unless their names are those of a checkpoint's tensors.
    """
    there = {path.name for path in folder.iterdir()}
    if missing := sorted(files.keys() - there):
        return f"{missing[0]} is missing"
    if extra := sorted(name for name in there - files.keys() if name.endswith(_LARGE)):
        return f"{extra[0]} is not in {NAME}"
    for name, entry in files.items():
        path = folder / name
        if not lies_in(folder, name):
            return f"{name} is a link that leads outside the folder"
        if not path.is_file():
            return f"{name} is not a file"
        if (size := path.stat().st_size) != entry.size:
            return f"{name} has {size:,} bytes instead of {entry.size:,}"
    return find_flipped(folder, {name: entry for name, entry in files.items() if not name.endswith(_LARGE)})


def find_flipped(folder: Path, files: Manifest) -> str | None:
    """Compares the checksums of some files; what differs, None where nothing does."""
    for name, entry in files.items():
        try:
            if sha256_of(folder / name) != entry.sha256:
                return f"the checksum of {name} is not that in {NAME}"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def is_large(name: str) -> bool:
    """Whether a file holds tensors, so that reading it whole takes long."""
    return name.endswith(_LARGE)
