"""Files: each is written whole or not at all, and one that is named in a folder lies in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot do it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def lies_in(folder: Path, name: object) -> bool:
    """Whether a file that something in `folder` names lies in it; not so for absolute paths, `..` and links elsewhere.

    Links of the Hub's cache lead from `snapshots` to `blobs` beside it and count as inside.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    whole = folder.resolve()
    target = (whole / name).resolve()
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    if target.is_relative_to(whole):
        return True
    caches = [parent.parent for parent in folder.absolute().parents if parent.name == "snapshots"]
    return any(target.is_relative_to((cache / "blobs").resolve()) for cache in caches)
