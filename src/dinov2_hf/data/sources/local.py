"""Sources that lie here: a folder, a pattern, a list of paths, an image, or tables."""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import yaml
from datasets import Dataset, Features, Image
from datasets.table import InMemoryTable

from ...config import SourceConfig
from ..fetch import is_url
from ..formats import READABLE, TABLES, remedy
from ..paths import shown, stored
from .folders import SPLITS, describe_ignored, names_in, read_file, read_folder, summary
from .listing import Pattern, State
from .listing_cache import Made, kept_listing
from .metadata import image_array


@dataclass(frozen=True)
class LocalImages:
    """Images that are files here."""

    dataset: Dataset
    """A row an image."""
    digest: str
    """Of the names of the files, wherever they lie."""
    summary: str
    """What was found, on one line."""


@dataclass(frozen=True)
class LocalTables:
    """Tables, or archives of images, of one format."""

    suffix: str
    files: dict[str, list[str]]
    """By split."""
    summary: str


def open_local(path: str, config: SourceConfig) -> LocalImages | LocalTables | None:
    """What lies at `path`, if that is a folder, a file or a pattern; None where `datasets` has to say.

    That is a clone of a set on the Hub whose README states its files, and whatever is not here.

    Raises:
        ValueError: nothing to read there, no such split, each with what there is instead.
    """
    local, root = Path(path), os.path.abspath(path)
    is_pattern = not local.exists() and not is_url(path) and glob.has_magic(path)
    if config.split_folders is not None and (is_pattern or not local.is_dir()):
        raise ValueError(f"split_folders={config.split_folders} is for folders, and {path} is none; leave it out")
    if local.is_dir():
        if config.split_folders is None and _states_files(local):
            return None
        if config.name is not None:
            raise ValueError(
                f"name={config.name!r} is for sets on the Hub, and the README of {path} states no configurations; "
                "leave it out"
            )
        reading = ["folder", root, config.split_folders]
        return _choose(path, config.split, *_kept(reading, lambda: read_folder(root, config.split_folders)))
    if is_pattern:
        pattern = Pattern(path)
        base = os.path.abspath(pattern.root)
        dataset, facts = _kept(["pattern", base, path], lambda: read_folder(base, False, path))
        if facts["tables"] and facts["ignored"]:
            kinds = ", ".join(sorted({facts["tables"]["suffix"], *facts["ignored"]}))
            raise ValueError(f"{shown(path)} is {kinds} files; give a pattern of images, or of tables of one kind")
        if not facts["tables"] and not facts["splits"] and not facts["ignored"]:
            raise ValueError(f"no file is called {shown(path)}; give a folder, or a pattern that files here match")
        return _choose(path, config.split, dataset, facts)
    suffix = local.suffix.lower()
    if not os.path.lexists(path) or suffix in TABLES:
        return None if not local.is_file() else LocalTables(suffix, {"train": [path]}, "1 file")
    if suffix == ".txt":
        return _choose(path, config.split, *_kept(["list", root], lambda: read_list(root)))
    if suffix == ".zip":
        return _choose(path, config.split, *_kept(["file", root], lambda: read_file(root)))
    if suffix in READABLE:
        table, facts, _ = read_file(root)
        return _choose(path, config.split, Dataset(InMemoryTable(table)), facts)
    help = f" ({remedy(suffix)})" if remedy(suffix) else ""
    raise ValueError(
        f"{shown(path)} is a {suffix or 'nameless'} file{help}; give a folder of images, an image, a .txt file of "
        f"paths, a .zip file, or files that end in {' or '.join(TABLES)}"
    )


def read_list(path: str) -> Made:
    """As `read_folder`, of the images that a text file names: a path or URL a line, relative to the folder of the file.

    Empty lines and lines that begin with `#` are left out. The files are not looked for before they are read.
    """
    folder, name = os.path.split(path)
    state = State(folder)
    state.add_file(name)
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in Path(path).read_bytes().split(b"\n")]
    paths = [line for line in lines if line.strip() and not line.startswith("#")]
    names = [line if is_url(line) else stored(os.path.join(folder, line)) for line in paths]
    schema = Features({"image": Image()}).arrow_schema
    table = pa.table([image_array(range(len(names)), names)], schema=schema)
    facts: dict[str, Any] = {
        "is_split": False,
        "tables": None,
        "splits": {"train": [0, len(names)]} if names else {},
        "digests": {"train": hashlib.sha256("\n".join(paths).encode(errors="surrogateescape")).hexdigest()},
        "num_classes": 0,
        "ignored": {},
        "links": 0,
        "notes": [],
    }
    return table, facts, state


def _kept(reading: list, make) -> tuple[Dataset, dict[str, Any]]:
    return kept_listing([*reading, sorted(READABLE)], make)


def _states_files(folder: Path) -> bool:
    """Whether a README says which files are which, as in clones of sets on the Hub."""
    try:
        text = (folder / "README.md").read_text(errors="replace")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, IndexError, yaml.YAMLError):
        return False
    configs = head.get("configs") if isinstance(head, dict) else None
    return isinstance(configs, list) and any(
        isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry) for entry in configs
    )


def _choose(path: str, split: str, dataset: Dataset, facts: dict[str, Any]) -> LocalImages | LocalTables:
    """The images or tables of `split` out of what was found at `path`."""
    if facts["tables"]:
        files: dict[str, list[str]] = facts["tables"]["files"]
        suffix = facts["tables"]["suffix"]
        _rows(split, {name: len(paths) for name, paths in files.items()}, path)
        return LocalTables(suffix, files, _summary_of_tables(facts, split))
    lengths = {name: count for name, (_, count) in facts["splits"].items()}
    if not lengths:
        raise ValueError(_nothing(path, facts))
    parts = []
    digest = hashlib.sha256(split.encode())
    for name, start, end in _rows(split, lengths, path):
        first = facts["splits"][name][0]
        parts.append(dataset.select(range(first + start, first + max(start, end))))
        digest.update(facts["digests"][name].encode())
    chosen = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return LocalImages(chosen, digest.hexdigest(), summary(facts, split, len(chosen)))


def _rows(split: str, lengths: dict[str, int], path: str) -> list[tuple[str, int, int]]:
    """Name, first and last row + 1 of each part of `split`, such as `train[:10%]+validation`.

    Raises:
        ValueError: no such split.
    """
    try:
        found = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        where = f"split={split!r} is not in {shown(path)}"
        if "Unknown split" not in str(error):
            raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None
        if list(lengths) == ["train"]:
            raise ValueError(
                f"{where}, which is all `train`, as it has no folders of splits; leave split= out, or put the images "
                f"of each split into a folder called {', '.join(SPLITS)}"
            ) from None
        raise ValueError(f"{where}; it has {', '.join(lengths)}: choose one with split=") from None
    return [(part.splitname, part.from_, part.to) for part in found]


def _summary_of_tables(facts: dict[str, Any], split: str) -> str:
    by_split = {name: len(paths) for name, paths in facts["tables"]["files"].items()}
    counted = facts | {"splits": {name: [0, count] for name, count in by_split.items()}}
    count = sum(count for name, count in by_split.items() if name in names_in(split))
    return summary(counted, split, count, f"{facts['tables']['suffix']} file")


def _nothing(path: str, facts: dict[str, Any]) -> str:
    found = describe_ignored(facts)
    holds = f"it holds {found}" if found else "it is an empty folder"
    notes = "".join(f"; {note}" for note in facts["notes"])
    return (
        f"{shown(path)} has no images or tables that can be read: {holds}{notes}; put images into it, or give another"
    )
