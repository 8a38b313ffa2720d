"""Repositories in memory as the Hub keeps them: blobs, LFS objects, commits, branches and tags."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_LFS_NAMES = re.compile(r".*\.(safetensors|onnx|onnx_data|onnx\.data|parquet|arrow|tar|bin|pt|pth|pkl|png|jpg|webp)")
_LARGEST_REGULAR = 10 << 20


class HubError(Exception):
    """An answer that is not a success; `code` goes to `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


@dataclass(frozen=True)
class Blob:
    """The content of a file."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS object."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        """Git's name of it, or of its pointer."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, Blob]
    parent: Commit | None = None

    def history(self) -> list[Commit]:
        """This commit and those before it, newest first."""
        return [self] + (self.parent.history() if self.parent else [])


@dataclass
class Repository:
    kind: str
    """models or datasets"""
    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by their sha256, whether a commit names them or not."""

    def __post_init__(self) -> None:
        attributes = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)
        self._append("main", "initial commit", {".gitattributes": attributes})

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a reference or (the beginning of) a commit's name stands for."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        for names in (self.branches, self.tags):
            if name in names:
                return names[name]
        if re.fullmatch(r"[0-9a-f]{7,40}", name):
            for head in [*self.branches.values(), *self.tags.values()]:
                for commit in head.history():
                    if commit.oid.startswith(name):
                        return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """Whether a file goes through LFS or inside the commit."""
        large = _LFS_NAMES.fullmatch(path) or size > _LARGEST_REGULAR or b"\0" in sample
        return "lfs" if large and size else "regular"

    def commit(self, branch: str, lines: list[dict]) -> Commit:
        """Applies the NDJSON lines of a commit to the head of `branch`."""
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.branches[branch]
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise HubError(400, "the first line is not a header with a summary")
        parent = lines[0]["value"].get("parentCommit")
        if parent and parent != head.oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        return self._append(branch, lines[0]["value"]["summary"], files)

    def _apply(self, files: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise HubError(400, f"invalid path: {path}")
        if key == "file":
            try:
                data = base64.b64decode(value["content"], validate=True)
            except binascii.Error:
                raise HubError(400, f"{path} is not base64") from None
            if value.get("encoding") != "base64" or self.upload_mode(path, len(data), data[:512]) != "regular":
                raise HubError(400, f"{path} has to go through LFS")
            files[path] = Blob(data, lfs=False)
        elif key == "lfsFile":
            stored = self.objects.get(value["oid"])
            if value.get("algo") != "sha256" or stored is None or len(stored) != value.get("size", len(stored)):
                raise HubError(400, f"LFS pointer of {path} points to an object that does not exist")
            files[path] = Blob(stored, lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            inside = path.rstrip("/") + "/"
            gone = [name for name in files if (name.startswith(inside) if key == "deletedFolder" else name == path)]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"unknown key of a commit's line: {key}")

    def _append(self, branch: str, title: str, files: Mapping[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        seed = f"{self.kind}/{self.id}/{parent.oid if parent else ''}/{title}"
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        self.branches[branch] = Commit(hashlib.sha1(f"{seed}\n{listing}".encode()).hexdigest(), title, files, parent)
        return self.branches[branch]

    def tree(self, commit: Commit, folder: str = "", recursive: bool = False, expand: bool = False) -> list[dict]:
        """The entries of a folder of a commit."""
        inside = f"{folder}/" if folder else ""
        names = [name for name in commit.files if name.startswith(inside)]
        if folder and not names:
            raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound")
        found = {}
        for name in names:
            parts = name.removeprefix(inside).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = inside + "/".join(parts[:depth])
                found[path] = {"type": "directory", "path": path, "size": 0, "oid": _sha1(path)}
            if recursive or len(parts) == 1:
                found[name] = self.entry(commit, name)
        if expand:
            last = {"id": commit.oid, "title": commit.title, "date": "2026-01-01T00:00:00.000Z"}
            found = {path: entry | {"lastCommit": last} for path, entry in found.items()}
        return [found[path] for path in sorted(found)]

    def entry(self, commit: Commit, path: str) -> dict:
        blob = commit.files[path]
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        return entry


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
