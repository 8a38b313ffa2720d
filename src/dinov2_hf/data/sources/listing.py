"""What lies below a folder, listed by `os.scandir`, and the state by which a later start knows that it still does."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import has_magic

_RACY_NS = 2 * 10**9  # two changes within so much may leave the same time in a folder
_BY_NAME = {"thumbs.db": "Thumbs.db", "desktop.ini": "desktop.ini", ".ds_store": ".DS_Store"}


@dataclass
class State:
    """Everything that a listing depends on, as it was just before it was read."""

    root: str
    started: int = field(default_factory=time.time_ns)
    directories: list[tuple[str, int, int]] = field(default_factory=list)
    """Path relative to the root, time of change in ns, inode."""
    files: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Of which the contents count: relative path, time of change in ns, inode, size."""
    dangling: list[str] = field(default_factory=list)
    """Links that lead nowhere."""
    complete: bool = True
    """Whether everything could be read."""

    def add_file(self, relative: str) -> None:
        found = os.stat(os.path.join(self.root, relative))
        self.files.append((relative, found.st_mtime_ns, found.st_ino, found.st_size))

    @property
    def is_settled(self) -> bool:
        """Whether a change after the listing is sure to show in these times, as for the index of git."""
        times = (entry[1] for entries in (self.directories, self.files) for entry in entries)
        return self.complete and max(times, default=0) < self.started - _RACY_NS

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        try:
            for relative, changed, inode in self.directories:
                found = os.stat(os.path.join(self.root, relative))
                if (found.st_mtime_ns, found.st_ino) != (changed, inode):
                    return False
            for relative, changed, inode, size in self.files:
                found = os.stat(os.path.join(self.root, relative))
                if (found.st_mtime_ns, found.st_ino, found.st_size) != (changed, inode, size):
                    return False
        except OSError:
            return False
        return not any(os.path.exists(os.path.join(self.root, relative)) for relative in self.dangling)


@dataclass
class Scan:
    """The files below a folder, by their paths relative to it."""

    root: str
    files: list[str] = field(default_factory=list)
    """Sorted by the bytes of their paths. Hidden files are not among them; links to files are."""
    linked: set[str] = field(default_factory=set)
    """Those of `files` that are links."""
    dangling: list[str] = field(default_factory=list)
    """Links that lead nowhere."""
    followed: int = 0
    """Links to folders that were followed."""
    loops: list[str] = field(default_factory=list)
    """Links to a folder that they lie in, which were not."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that could not be listed."""
    ignored: Counter[str] = field(default_factory=Counter)
    """What is neither a file nor a folder to enter, by kind."""
    state: State = field(default_factory=lambda: State(""))


class Pattern:
    """A pattern of paths: `*`, `?` and `[…]` within a name, `**` for any number of folders.

    Hidden names never match.
    """

    def __init__(self, path: str) -> None:
        parts = path.split("/")
        first = next(number for number, part in enumerate(parts) if has_magic(part))
        self.root = "/".join(parts[:first]) or ("/" if first else ".")
        """The folder below which everything lies that can match."""
        self._parts = [part for part in parts[first:] if part]
        self._deep = self._parts.index("**") if "**" in self._parts else None

    def enters(self, depth: int, name: str) -> bool:
        """Whether files below a folder `name`, `depth` folders below the root, can match."""
        if self._deep is not None and depth >= self._deep:
            return True
        return depth < len(self._parts) - 1 and fnmatchcase(name, self._parts[depth])

    def matches(self, relative: str) -> bool:
        return _match(relative.split("/"), self._parts)


def _match(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _match(names, parts[1:]) or _match(names[1:], parts)
    return fnmatchcase(names[0], parts[0]) and _match(names[1:], parts[1:])


def scan(root: str, pattern: Pattern | None = None) -> Scan:
    """Everything below `root`, or all that matches `pattern`, through links too.

    A link to a folder is followed unless it leads back to a folder that it lies in; two links to one folder are both
    followed. Hidden files and folders, and `__MACOSX`, are counted and not read.
    """
    found = Scan(root, state=State(root))
    # relative path with "/" at its end, depth, (device, inode) of the folders above, whether a link leads there
    waiting: list[tuple[str, int, tuple, bool]] = [("", 0, (), False)]
    while waiting:
        prefix, depth, above, is_link = waiting.pop()
        path = os.path.join(root, prefix)
        try:
            state = os.stat(path)
            here = (state.st_dev, state.st_ino)
            if here in above:
                found.loops.append(prefix[:-1])
                continue
            with os.scandir(path) as iterator:
                entries = list(iterator)
        except OSError:
            found.unreadable.append(prefix[:-1])
            found.state.complete = False
            continue
        found.followed += is_link
        found.state.directories.append((prefix, state.st_mtime_ns, state.st_ino))
        for entry in entries:
            name, relative = entry.name, prefix + entry.name
            kind = _kind(entry, found, relative)
            ignored = _ignored(name, kind)
            if ignored is not None:
                if pattern is None:
                    found.ignored[ignored] += 1
            elif kind == "folder":
                if pattern is None or pattern.enters(depth, name):
                    waiting.append((f"{relative}/", depth + 1, (*above, here), entry.is_symlink()))
            elif pattern is None or pattern.matches(relative):
                if kind == "file":
                    found.files.append(relative)
                    if entry.is_symlink():
                        found.linked.add(relative)
                elif kind == "dangling":
                    found.dangling.append(relative)
                else:
                    found.ignored["special file"] += 1
    for paths in (found.files, found.dangling, found.loops, found.unreadable):
        paths.sort(key=os.fsencode)
    return found


def _kind(entry: os.DirEntry, found: Scan, relative: str) -> str:
    """`folder`, `file`, `dangling` for a link that leads nowhere, or `other`; links are what they lead to."""
    if entry.is_symlink():
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:
            found.state.dangling.append(relative)
            return "dangling"
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
    if entry.is_file(follow_symlinks=False):
        return "file"
    return "folder" if entry.is_dir(follow_symlinks=False) else "other"


def _ignored(name: str, kind: str) -> str | None:
    """What kind of entry this is, if it is one that is never read."""
    if kind == "folder":
        return "__MACOSX folder" if name == "__MACOSX" else "hidden folder" if name[0] == "." else None
    if name[0] == "." or name[0] in "TtDd":
        known = _BY_NAME.get(name.lower())
        if known is not None or name[0] != ".":
            return known
        return "._ file" if name[1:2] == "_" else "hidden file"
    return None
