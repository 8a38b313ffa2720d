"""What of a folder may leave this machine: an allow-list of files, and what those must not hold."""

from __future__ import annotations

import json
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from ..config import find_tokens
from ..files import STATE_FILE

_WEIGHTS = r"model\.safetensors|model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json|heads\.safetensors"
_GRAPHS = r"(onnx/)?[\w.-]+\.onnx([._]data)?"
_TEXTS = r"config\.json|preprocessor_config\.json|README\.md|LICENSE(\.md|\.txt)?"
ALLOWED = re.compile(f"{_WEIGHTS}|{_GRAPHS}|{_TEXTS}")
"""Names of what is pushed; `REPLACED` of them are removed from the Hub where the folder has them no more."""
REPLACED = re.compile(f"{_WEIGHTS}|{_GRAPHS}")

_PICKLES = (".bin", ".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".joblib")
_OPTIMIZER_FILE = re.compile(r"(optimizer|optim|scheduler|scaler|random_states|rng_state)([._-].*)?", re.IGNORECASE)
_OPTIMIZER_TENSOR = re.compile(r"(^|\.)(optimizer|optim|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)(\.|$)")
_CHECKPOINT_FILES = (STATE_FILE, ".metadata")

_PERSONAL = ("/home/", "/Users/", "/root/", "/mnt/", "/scratch/", "/workspace/")
_EVERYWHERE = ("/bin/", "/dev/", "/etc/", "/lib/", "/proc/", "/sbin/", "/sys/", "/usr/")
_PATH = re.compile(
    r"(?<![\w.:/\\~>-])(?:file://)?(/[^\s/\"'`<>()\[\]{},;|*]+/[^\s\"'`<>()\[\]{},;|*]*|[A-Za-z]:\\+[^\s\"'`]+)"
)


@dataclass
class Contents:
    """The files of an exported folder that may be pushed."""

    folder: Path
    files: dict[str, Path | bytes] = field(default_factory=dict)
    """By their names in the repository: where they lie, or what is sent in place of what lies there."""
    left_out: list[str] = field(default_factory=list)
    """Names of what is not on the allow-list."""
    adapted: list[str] = field(default_factory=list)
    """What is sent otherwise than it lies there, and why."""

    def size(self, name: str) -> int:
        """Bytes of a file."""
        source = self.files[name]
        return len(source) if isinstance(source, bytes) else source.stat().st_size


def read_contents(folder: Path) -> Contents:
    """Looks through an exported folder, or the output folder of a run that has one in `export/`.

    Links that stay in the folder are followed, others refused, also those of a snapshot in the cache of the Hub.

    Raises:
        FileNotFoundError: there is no folder, or no model in it.
        ValueError: it holds what must not leave: links out of it, optimizer states, pickles, paths of this machine,
            access tokens.
    """
    contents = Contents(_export_in(folder))
    refused = []
    for path in sorted(_files_in(contents.folder)):
        name = path.relative_to(contents.folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(contents.folder.resolve()):
            refused.append(f"{name} is a link out of the folder")
        elif path.is_dir():  # a link to a folder here, whose files go under their own names
            contents.left_out.append(name)
        elif path.suffix.lower() in _PICKLES:
            refused.append(f"{name} is a pickle, which runs code where it is opened")
        elif _OPTIMIZER_FILE.fullmatch(path.name):
            refused.append(f"{name} holds the state of an optimizer")
        elif ALLOWED.fullmatch(name):
            contents.files[name] = path
        else:
            contents.left_out.append(name)
    if not refused:
        _require_whole_model(contents)
    for name in contents.files:
        refused += _problems(contents, name)
    if refused:
        shown = "; ".join(refused[:5]) + (f"; and {len(refused) - 5} more" if len(refused) > 5 else "")
        raise ValueError(f"{contents.folder} is not pushed: {shown}; fix or remove that and push again")
    return contents


def _export_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a run's output folder or an export")
    if any((folder / name).is_file() for name in _CHECKPOINT_FILES) or list(folder.glob("*.distcp")):
        raise ValueError(
            f"{folder} is a checkpoint to continue a run from, with the state of its optimizer; push the run's export"
        )
    for candidate in (folder, folder / "export"):
        if (candidate / "config.json").is_file():
            if not candidate.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{candidate} is a link out of {folder}; push {candidate.resolve()} by its own name")
            return candidate
    if several := sorted(path.parent.name for path in folder.glob("export-*/config.json")):
        raise FileNotFoundError(f"{folder} has several exports; push them one by one: {', '.join(several)}")
    raise FileNotFoundError(
        f"{folder} has no config.json, nor has its export/, so there is no model to push; a run writes its export at "
        "the end"
    )


def _files_in(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # caches and repositories of other tools
        yield from (Path(parent, name) for name in names)
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())  # which walk leaves out


def _require_whole_model(contents: Contents) -> None:
    files, index = contents.files, "model.safetensors.index.json"
    if "model.safetensors" in files:
        return
    if index not in files:
        raise FileNotFoundError(f"{contents.folder} has no model.safetensors; export the model again")
    try:
        shards = set(json.loads(cast(Path, files[index]).read_text())["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{contents.folder / index} cannot be read: {error}; export the model again") from None
    if missing := sorted(shards - files.keys()):
        raise FileNotFoundError(f"{contents.folder} lacks {', '.join(missing)}, named in {index}; export it again")


def _problems(contents: Contents, name: str) -> list[str]:
    """Why a file must not leave; replaces what a tool left in it and nobody reads."""
    path = cast(Path, contents.files[name])
    if name.endswith(".safetensors"):
        return _problems_of_tensors(name, path)
    if name.endswith(".onnx"):
        return _problems_of_graph(name, path)
    if re.search(r"[._]data$", name):  # numbers alone
        return []
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if name.endswith(".json") else None
    except ValueError as error:
        return [f"{name} cannot be read: {error}"]
    if isinstance(data, dict) and name == "config.json" and _is_path(str(data.get("_name_or_path", ""))):
        # older releases of transformers wrote where a model had been loaded from
        del data["_name_or_path"]
        contents.files[name] = (json.dumps(data, indent=2) + "\n").encode()
        contents.adapted.append(f"{name}: without _name_or_path, a path of the machine it was saved on")
    found = {}
    for value in [text] if data is None else _strings(data):
        whole = [value] if data is not None and _is_path(value) else []
        for item in whole or _paths_of_this_machine(value):
            found[item] = f"{name}:{_line_of(text, item)} has {item!r}, a path of a machine"
        for token in find_tokens(value):
            found[token] = f"{name}:{_line_of(text, token)} has what looks like an access token"
    return list(found.values())


def _problems_of_tensors(name: str, path: Path) -> list[str]:
    """Reads the header alone."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors, metadata = list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        return [f"{name} is not a whole safetensors file ({error})"]
    for key in tensors:
        if _OPTIMIZER_TENSOR.search(key):
            return [f"{name} holds the state of an optimizer ({key})"]
    for value in _strings(metadata):
        for item in _paths_of_this_machine(value):
            return [f"{name} has {item!r} in its header, a path of a machine"]
        if find_tokens(value):
            return [f"{name} has what looks like an access token in its header"]
    return []


def _problems_of_graph(name: str, path: Path) -> list[str]:
    """Exporters note in which source file an operation was made."""
    if not path.stat().st_size:
        return [f"{name} is empty"]
    # names of operations look like paths as well, such as `/encoder/layer.0/Add`: no short roots here
    roots = [root for root in _roots_of_this_machine() if root in _PERSONAL or root.count("/") > 2]
    pattern = b"(?:%s)[!-~]{3,}|/[!-~]*/site-packages/[!-~]+" % b"|".join(re.escape(root.encode()) for root in roots)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        match = re.search(pattern, data)
        return [f"{name} has {match[0].decode()!r}, a path of a machine"] if match else []


def _strings(value) -> Iterator[str]:
    """The strings in what JSON holds, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *_strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _is_path(value: str) -> bool:
    """Whether all of it is an absolute path, of this or of another machine."""
    return bool(re.fullmatch(r"(file://)?/[^/].*|[A-Za-z]:[\\/].*", value))


def _paths_of_this_machine(text: str) -> Iterator[str]:
    """Absolute paths in running text that tell of a machine; made-up ones, as in examples, do not."""
    roots = tuple(_roots_of_this_machine())
    for match in _PATH.finditer(text):
        path = match[1].rstrip(".:!?/")
        if path[0] != "/" or f"{path}/".startswith(roots) or _exists(path):
            yield path


def _roots_of_this_machine() -> list[str]:
    """Folders, with a slash at the end, whose names tell of this machine or of who uses it."""
    own = (Path.home(), Path.cwd(), Path(sys.prefix), Path(tempfile.gettempdir()), Path(__file__).resolve().parents[2])
    roots = [f"{path}/" for path in own if len(path.parts) > 1]
    return [*_PERSONAL, *(root for root in roots if root not in _EVERYWHERE)]


def _exists(path: str) -> bool:
    try:
        return not path.startswith(_EVERYWHERE) and Path(path).exists()
    except OSError:  # too long for a name
        return False


def _line_of(text: str, value: str) -> int:
    """The line in which a value stands, as it is or as JSON writes it."""
    for written in (value, json.dumps(value)[1:-1]):
        if written in text:
            return text[: text.index(written)].count("\n") + 1
    return 1
