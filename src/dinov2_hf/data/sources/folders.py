"""Which files of a folder are images, and which of them belong to which split and class.

Sub-folders are splits only if every one that holds images is called `train`, `val`, `validation` or `test` and no image
lies beside them; otherwise the folder is one set, called `train`. Names of image files mean nothing.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Features, Image

from ..formats import READABLE, TABLES, remedy
from ..names import few
from ..paths import read_stored, shown, stored, stored_member
from .listing import Pattern, Scan, State, scan
from .listing_cache import Made
from .metadata import NAMES, Metadata, image_array, join_metadata, read_table

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""Names of folders that can be splits."""
_NOUN = re.compile(r"(?<!\S)(image|class|link|folder|member|file|name)\b")
_TABLE_OF_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(-\d{{5}}-of-\d{{5}}(-[^/]*)?)?")


@dataclass
class _Found:
    """The files of a folder by what they are; paths are relative to it."""

    root: str
    images: dict[str, str] = field(default_factory=dict)
    """Path to stored name."""
    tables: list[str] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    """Path and stored name."""
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    """What else a person should know, in the words of the log."""
    links: int = 0

    def add(self, path: str, name: str, state: State, in_archive: bool = False) -> bool:
        """Sorts in a file; returns whether it is an image."""
        base = posixpath.basename(path)
        suffix = posixpath.splitext(base)[1].lower()
        if suffix in READABLE:
            while path in self.images:  # an archive may hold a name twice
                path += "\0"
            self.images[path] = name
            return True
        if base in NAMES:
            self.metadata.append((path, name))
        elif suffix == ".zip" and not in_archive:
            self._add_archive(path, state)
        elif suffix in TABLES and not in_archive:
            self.tables.append(path)
        else:
            self.ignored[suffix or "file without a suffix"] += 1
        return False

    def _add_archive(self, path: str, state: State) -> None:
        file = os.path.join(self.root, path)
        try:
            state.add_file(path)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except Exception as error:  # zipfile raises anything from BadZipFile to UnicodeDecodeError on damaged files
            self.ignored["damaged .zip"] += 1
            self.notes.append(f"{shown(path)} cannot be read: {shown(str(error)) or type(error).__name__}")
            return
        for number, member in enumerate(members):
            parts = [part for part in member.filename.split("/") if part not in ("", ".", "..")]
            if member.is_dir() or not parts:
                continue
            if member.flag_bits & 1:
                self.ignored["encrypted member of a .zip"] += 1
            elif "__MACOSX" in parts or any(part.startswith(".") for part in parts):
                self.ignored["hidden member of a .zip"] += 1
            else:
                self.add("/".join((path, *parts)), stored_member(file, number, member.filename), state, True)


def read_folder(root: str, split_folders: bool | None = None, pattern: str | None = None) -> Made:
    """The images below `root`, or those that match `pattern`: a table of them, its facts, and what these depend on.

    The table has a column `image`, and `label` where the images lie in folders of classes, or the columns of metadata.
    Facts are `splits` (name to first row and number of rows), `digests` of the names in each, `tables` where there are
    no images (`suffix`, and `files` by split), and what `summary` needs.

    Args:
        root: absolute path.
        split_folders: whether sub-folders are splits; None for the rule.

    Raises:
        ValueError: a table of metadata that cannot be read, or no folders of splits where they have to be.
    """
    found_files = scan(root, Pattern(pattern) if pattern else None)
    return arrange(found_files, split_folders)


def read_file(path: str) -> Made:
    """As `read_folder`, of one image, or of the images in one `.zip`."""
    folder, name = os.path.split(path)
    return arrange(Scan(folder, [name], state=State(folder)), False)


def arrange(files: Scan, split_folders: bool | None) -> Made:
    """The table, the facts and the state of `read_folder` for files that were found."""
    found = _Found(files.root, ignored=Counter(files.ignored), links=files.followed)
    for path in files.files:
        is_image = found.add(path, stored(os.path.join(files.root, path)), files.state)
        found.links += is_image and path in files.linked
    for path in files.dangling:
        if posixpath.splitext(path)[1].lower() in READABLE:
            found.images[path] = stored(os.path.join(files.root, path))
        else:
            found.ignored["dangling link"] += 1
    for what, paths in (
        ("dangling link", files.dangling),
        ("link in a loop not followed", files.loops),
        ("folder that cannot be read", files.unreadable),
    ):
        if paths:
            found.notes.append(_named(what, paths))
    facts: dict[str, Any] = {"is_split": False, "tables": None, "splits": {}, "digests": {}, "num_classes": 0}
    if found.images:
        table = _images(found, files.state, split_folders, facts)
    else:
        found.tables += [path for path, _ in found.metadata]  # without images these are tables like others
        table = pa.table({})
        _tables(found, split_folders, facts)
    facts |= {"ignored": dict(found.ignored), "links": found.links, "notes": found.notes}
    return table, facts, files.state


def _images(found: _Found, state: State, split_folders: bool | None, facts: dict[str, Any]) -> pa.Table:
    """Rows of images, split by split."""
    for path in found.tables:
        found.ignored[posixpath.splitext(path)[1].lower()] += 1
    tables = []
    for path, name in found.metadata:
        if name.startswith("\0zip"):
            content = read_stored(name)
        else:
            state.add_file(path)
            content = Path(found.root, path).read_bytes()
        table = read_table(path, content)
        if table is None:
            found.ignored[posixpath.basename(path)] += 1
            found.notes.append(f"{shown(path)} has no column file_name")
        else:
            tables.append((path, table))
    paths = sorted(found.images, key=os.fsencode)
    facts["is_split"] = is_split = _is_split(paths, split_folders, found.root)
    splits = [SPLITS.get(path.partition("/")[0], "") if is_split and "/" in path else "" for path in paths]
    if is_split:
        outside = splits.count("")
        if outside:
            found.notes.append(f"{counted(outside, 'image')} outside of the folders of splits left out")
        paths = [path for path, split in zip(paths, splits, strict=True) if split]
        splits = [split for split in splits if split]
    else:
        splits = ["train"] * len(paths)
    names = [found.images[path] for path in paths]
    main: Sequence[int]
    if tables:
        joined = join_metadata(tables, paths, names)
        found.notes += _notes_of(joined, tables)
        features, main = joined.features, joined.main
        arrays = [joined.table.column(name) for name in features]
    else:
        features, main = Features({"image": Image()}), range(len(paths))
        arrays = [image_array(main, names)]
        labels = _labels(paths, 2 if is_split else 1)
        if labels is not None:
            classes, values = labels
            facts["num_classes"] = len(classes)
            features["label"] = ClassLabel(names=classes)
            arrays.append(pa.array(values, pa.int64()))
    order, first = [], 0
    for split in dict.fromkeys(SPLITS.values()):
        rows = [row for row, image in enumerate(main) if splits[image] == split]
        if rows:
            facts["splits"][split] = [first, len(rows)]
            held = "\n".join(paths[main[row]] for row in rows)
            facts["digests"][split] = hashlib.sha256(held.encode(errors="surrogateescape")).hexdigest()
        order += rows
        first += len(rows)
    schema = features.arrow_schema
    table = pa.table([array.cast(entry.type) for array, entry in zip(arrays, schema, strict=True)], schema=schema)
    return table if order == list(range(len(order))) else table.take(pa.array(order, pa.int64()))


def _is_split(paths: list[str], split_folders: bool | None, root: str) -> bool:
    """Whether the folders directly below the root are splits."""
    folders = {path.partition("/")[0] if "/" in path else "" for path in paths}
    if split_folders is None:
        return folders <= SPLITS.keys()
    if split_folders and not folders & SPLITS.keys():
        raise ValueError(
            f"split_folders=true, but {shown(root)} has none of the folders {', '.join(SPLITS)} with images; create "
            "them, or leave split_folders out"
        )
    return split_folders


def _labels(paths: list[str], folders: int) -> tuple[list[str], list[int]] | None:
    """Classes by the names of the folders of images, and that of each image; None where these are not classes.

    They are where all images lie equally deep, `folders` or more below the root, in folders of several names.
    """
    depths = {path.count("/") for path in paths}
    if len(depths) != 1 or min(depths) < folders:
        return None
    parents = [posixpath.basename(posixpath.dirname(path)) for path in paths]
    of_name = {parent: shown(parent.removesuffix(".zip")) for parent in set(parents)}
    classes = sorted(set(of_name.values()))
    number = {name: position for position, name in enumerate(classes)}
    return (classes, [number[of_name[parent]] for parent in parents]) if len(classes) > 1 else None


def _tables(found: _Found, split_folders: bool | None, facts: dict[str, Any]) -> None:
    """Chooses the tables of a folder without images, and their splits."""
    by_suffix: dict[str, list[str]] = {}
    for path in found.tables:
        by_suffix.setdefault(posixpath.splitext(path)[1].lower(), []).append(path)
    chosen = next((suffix for suffix in TABLES if suffix in by_suffix), None)
    if chosen is None:
        return
    for suffix, others in by_suffix.items():
        if suffix != chosen:
            found.ignored[suffix] += len(others)
    paths = sorted(by_suffix[chosen], key=os.fsencode)
    by_name = [_TABLE_OF_SPLIT.fullmatch(posixpath.basename(path)[: -len(chosen)]) for path in paths]
    if _is_split(paths, split_folders, found.root):
        splits = [SPLITS.get(path.partition("/")[0], "") if "/" in path else "" for path in paths]
    elif split_folders is None and all(by_name):
        splits = [SPLITS[match[1]] for match in by_name if match]
    else:
        splits = ["train"] * len(paths)
    facts["is_split"] = set(splits) != {"train"} or split_folders is True
    by_split: dict[str, list[str]] = {}
    for split, path in zip(splits, paths, strict=True):
        by_split.setdefault(split, []).append(os.path.join(found.root, path))
    outside = by_split.pop("", None)
    if outside:
        found.notes.append(f"{counted(len(outside), chosen + ' file')} outside of the folders of splits left out")
    facts["tables"] = {"suffix": chosen, "files": by_split}


def _notes_of(joined: Metadata, tables: list[tuple[str, pa.Table]]) -> list[str]:
    where, notes = few([shown(path) for path, _ in tables], 3), []
    if joined.unnamed:
        notes.append(f"{counted(joined.unnamed, 'image')} not named in {where}")
    if joined.elsewhere:
        notes.append(f"{counted(joined.elsewhere, 'image')} in further columns of {where}")
    if joined.missing:
        notes.append(_named(f"name in {where} of no image here", joined.missing))
    return notes


def summary(facts: dict[str, Any], split: str, count: int, what: str = "image") -> str:
    """What was found in a folder, on one line: `count` images (or files) of `split`, and what else lies there."""
    parts = [counted(count, what) + (f", {counted(facts['num_classes'], 'class')}" if facts["num_classes"] else "")]
    if facts["is_split"] or split != "train":
        counts = {name: rows for name, (_, rows) in facts["splits"].items() if name not in names_in(split)}
        others = [f"{rows:,}" if what == "image" else counted(rows, what) for rows in counts.values()]
        others = [f"{number} in {name}" for name, number in zip(counts, others)]
        parts.append(f"split {split}" + (f" (also: {', '.join(others)})" if others else ""))
    ignored = describe_ignored(facts)
    parts += [f"ignored {ignored}"] if ignored else []
    parts += [f"{counted(facts['links'], 'link')} followed"] if facts["links"] else []
    parts += facts["notes"]
    tables = [suffix for suffix in (".tar", ".parquet", ".arrow") if suffix in facts["ignored"]]
    if tables and what == "image":
        parts.append(f"to read the {tables[0]} files, give a pattern such as **/*{tables[0]} as a source of its own")
    return "; ".join(parts)


def describe_ignored(facts: dict[str, Any], most: int = 8) -> str:
    """Counts of files that are not read, by kind, with what would read them."""
    counts = Counter(facts["ignored"]).most_common()
    said = []
    for kind, count in counts[:most]:
        help = remedy(kind) if kind.startswith(".") else None
        said.append(counted(count, shown(kind)) + (f" ({help})" if help else ""))
    if counts[most:]:
        said.append(f"{sum(count for _, count in counts[most:]):,} of {len(counts) - most} other kinds")
    return ", ".join(said)


def names_in(split: str) -> list[str]:
    """The splits in a sum of slices, such as `train[:10%]+validation`."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def counted(number: int, what: str) -> str:
    """`3,068 images`, `2 .tar files`, `2 .txt`."""
    if number != 1:
        what = _NOUN.sub(lambda word: word[1] + ("es" if word[1] == "class" else "s"), what, count=1)
    return f"{number:,} {what}"


def _named(what: str, names: list[str]) -> str:
    return f"{counted(len(names), what)} ({few(map(shown, names), 3)})"
