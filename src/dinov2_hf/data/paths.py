"""Names of files as text: any name that a file system or an archive allows can be stored in a table, read and shown.

A stored name is the path itself; `\\0path\\0HEX` where the path is not UTF-8; or `\\0zip\\0INDEX\\0HEX\\0MEMBER` for a
member of the zip file whose path is HEX. No path holds `\\0`, so these are never mistaken for one.
"""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache

_OPEN_ARCHIVES = 8
_LARGEST_MEMBER = 1 << 30


def stored(path: str) -> str:
    """A path as UTF-8 text."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return f"\0path\0{os.fsencode(path).hex()}"


def stored_member(archive: str, index: int, name: str) -> str:
    """Member `index` of a zip file, as UTF-8 text."""
    return f"\0zip\0{index}\0{os.fsencode(archive).hex()}\0{shown(name)}"


def name_of(name: str) -> str:
    """A stored name for people, on one line."""
    if not name.startswith("\0"):
        return shown(name)
    kind, *parts = name[1:].split("\0")
    path = shown(os.fsdecode(bytes.fromhex(parts[0 if kind == "path" else 1])))
    return path if kind == "path" else f"{path}/{parts[2]}"


def read_stored(name: str) -> bytes:
    """The bytes of a file or of a member of an archive, by a stored name that is not the path itself.

    Raises:
        OSError: it is not there or cannot be read.
    """
    kind, *parts = name[1:].split("\0")
    if kind == "path":
        with open(bytes.fromhex(parts[0]), "rb") as file:
            return file.read()
    try:
        archive, members = _archive(os.getpid(), os.fsdecode(bytes.fromhex(parts[1])))
        member = members[int(parts[0])]
        if member.file_size > _LARGEST_MEMBER:
            raise OSError(f"unpacked, it has {member.file_size:,} bytes; an image of an archive may have 1 GiB")
        return archive.read(member)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, LookupError, EOFError) as error:
        raise OSError(f"damaged archive: {error}") from error
    except Exception as error:  # zlib, lzma and bz2 have errors of their own
        raise error if isinstance(error, OSError) else OSError(f"damaged archive: {error}") from error


def state_of(name: str) -> tuple[int, int] | None:
    """Size and time of change in ns of the file or archive that a stored name lies in; None if it is not there."""
    path = name
    if name.startswith("\0"):
        kind, *parts = name[1:].split("\0")
        path = os.fsdecode(bytes.fromhex(parts[0 if kind == "path" else 1]))
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def shown(path: str) -> str:
    """A path or a name for people: line ends, control characters and bytes that are not UTF-8 are escaped."""
    if path.isprintable():
        return path
    return "".join(character if character.isprintable() else _escape(character) for character in path)


def name_in(where: str, name: str) -> str:
    """The name of an image of the set `where`, which it names where it is neither a whole path nor a URL."""
    return name if os.path.isabs(name) or "://" in name else f"{name} of {where}"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python holds it in a text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _archive(process: int, path: str) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """An open zip file and its members; a process of its own for each, because a fork shares the place in the file."""
    archive = zipfile.ZipFile(path)
    return archive, archive.infolist()
