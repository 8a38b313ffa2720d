"""Image files that a published layout names, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ...data.fetch import read_bytes


class FileImages:
    """Image files as extraction reads them.

    Args:
        files: in order.
        where: what messages call them.
    """

    def __init__(self, files: Sequence[Path], where: str) -> None:
        self.files, self.where = list(files), where
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns)).encode())
        self.fingerprint: str | None = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        return read_bytes(str(self.files[index])), str(self.files[index])
