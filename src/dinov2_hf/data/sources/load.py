"""From the configuration of a source to a `datasets` object."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetBuilder, DatasetDict, IterableDataset, load_dataset_builder, load_from_disk
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ...config import SourceConfig
from ..fetch import is_url
from ..formats import TABLES
from ..names import one_line
from ..paths import shown
from .folders import counted, names_in
from .generators import is_generated
from .held import held_at, is_held
from .local import LocalImages, LocalTables, open_local
from .remote import build_from_hub
from .tables import build_tables, fitted, open_stream, prepare
from .tars import open_tars

logger = logging.getLogger(__name__)

# a saved set that is streamed has a shard for so many rows, but no more than that: opening one takes milliseconds
_SAVED_SHARD_ROWS, _MAX_SAVED_SHARDS = 64, 256


@dataclass(frozen=True)
class Loaded:
    """A source as `datasets` reads it."""

    dataset: Dataset | IterableDataset
    files: list[str]
    """The files it is made of, in order; unknown for a set saved with `save_to_disk`."""
    folder: str | None
    """What relative paths in its columns are relative to; None where its files lie in several folders."""
    lengths: list[int] | None = None
    """Rows of each shard of a stream, where they are known."""
    fingerprint: str | None = None
    """Of a set saved with `save_to_disk`; of files that were listed, of their names."""
    listed: bool = False
    """Whether its images are files that were listed here."""
    summary: str = ""
    """What was found, on one line."""
    tars: Sequence[str] = ()
    """The archives that its columns say places in."""

    def listing(self) -> dict[str, Any]:
        """What the source is made of, the same wherever it lies: `count` of `unit` (images or files), and a `digest`.

        The digest is of the names of all files, relative to the folder that they share, and of the sizes of tables and
        tars; of a set on the Hub, of names that contain the revision; of a saved set, of its fingerprint.
        """
        digest = hashlib.sha256((self.fingerprint or "").encode())
        root = os.path.commonprefix([min(self.files), max(self.files)]).rpartition("/")[0] + "/" if self.files else ""
        tables = bool(self.files) and Path(self.files[0]).suffix in TABLES
        for file in sorted(self.files):
            local = not is_url(file)
            size = os.stat(file).st_size if tables and local else ""
            digest.update(f"{file.removeprefix(root) if local else file}\0{size}\0".encode(errors="surrogateescape"))
        if isinstance(self.dataset, Dataset):
            count, unit = len(self.dataset), "images"
        elif self.lengths is not None:
            count, unit = sum(self.lengths), "images"
        else:
            count, unit = len(self.files), "files" if tables else "images"
        return {"count": count, "unit": unit, "digest": digest.hexdigest()[:32]}


def load(config: SourceConfig, streaming: bool, name: str = "") -> Loaded:
    """What lies at `config.path`: `docs/data.md` has the kinds of sources. The log says once what was found.

    Args:
        config: of the source.
        streaming: whether tables and tars are read as streams.
        name: what the log calls the source, such as `data.train`.

    Raises:
        ValueError: nothing to read, no such split, each with what there is instead.
    """
    if is_generated(config.path):
        raise ValueError(f"{config.path} is a generator, which only data.train and data.mix read; give files here")
    path = os.path.expanduser(str(config.path))
    try:
        if is_held(path):
            loaded = _load_held(config, streaming)
        elif _is_saved(path):
            loaded = _load_saved(path, config.split, streaming)
        else:
            loaded = _load_files(path, config, streaming)
    except FileNotFoundError as error:  # the base of EmptyDatasetError and DataFilesNotFoundError
        raise ValueError(f"{path} has no images or tables that can be read: {one_line(error)}") from error
    except (OSError, ValueError) as error:
        text = one_line(error, 2000)
        if "Unknown split" in text or "Bad split" in text:
            raise ValueError(f"split={config.split!r} is not in {path}: {text}") from None
        raise ValueError(text if shown(path) in text else f"{path} cannot be read: {text}") from error
    if isinstance(loaded.dataset, Dataset) and len(loaded.dataset) == 0:
        raise ValueError(f"{path} (split {config.split!r}) has no rows")
    _say(f"{name}: " * bool(name) + f"{shown(path)}: {loaded.summary}")
    return loaded


def _is_saved(path: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    parts = ("state.json", "dataset_info.json")
    return Path(path, "dataset_dict.json").is_file() or all(Path(path, part).is_file() for part in parts)


@cache
def _say(line: str) -> None:
    """Logs a line once, on the main process."""
    if os.environ.get("RANK", "0") == "0":
        logger.info("%s", line)


def _load_held(config: SourceConfig, streaming: bool) -> Loaded:
    """What was handed in from Python."""
    item = held_at(config)
    if isinstance(item, IterableDataset):
        if not streaming:
            raise ValueError(
                f"{config.path} is an IterableDataset, whose rows have no numbers; give a datasets.Dataset"
            )
        return Loaded(item, [], None, summary="streamed")
    if not isinstance(item, Dataset):
        raise ValueError(
            f"{config.path} is an object of the type {type(item).__name__}, which has no columns; give a "
            "datasets.Dataset"
        )
    return Loaded(item, [], None, fingerprint=item._fingerprint, summary=f"{len(item):,} rows")


def _load_saved(path: str, split: str, streaming: bool) -> Loaded:
    """A set that was saved with `save_to_disk`."""
    saved = load_from_disk(path)
    if not isinstance(saved, DatasetDict):
        saved = DatasetDict({str(saved.split or "train"): saved})
    if split not in saved:
        raise ValueError(f"split={split!r} is not in {path}; it has {', '.join(saved)}")
    dataset = saved[split]
    summary = _summary(f"{len(dataset):,} rows", split, saved)
    if not streaming:
        return Loaded(dataset, [], path, fingerprint=dataset._fingerprint, summary=summary)
    shards = max(min(len(dataset) // _SAVED_SHARD_ROWS, _MAX_SAVED_SHARDS), 1)
    each, more = divmod(len(dataset), shards)
    lengths = [each + (shard < more) for shard in range(shards)]
    return Loaded(dataset.to_iterable_dataset(shards), [], path, lengths, dataset._fingerprint, summary=summary)


def _load_files(path: str, config: SourceConfig, streaming: bool) -> Loaded:
    """A folder, a file, a pattern of files, or a set on the Hub."""
    found = open_local(path, config)
    if isinstance(found, LocalImages):
        if not streaming:
            return Loaded(found.dataset, [], None, fingerprint=found.digest, listed=True, summary=found.summary)
        lengths, stream = [len(found.dataset)], found.dataset.to_iterable_dataset(1)
        return Loaded(stream, [], None, lengths, found.digest, listed=True, summary=found.summary)
    if isinstance(found, LocalTables):
        return _open(build_tables(TABLES[found.suffix], found.files), config, streaming, found.summary)
    here = os.path.exists(path)  # a clone of a set
    builder = load_dataset_builder(path, config.name) if here else build_from_hub(path, config.name)
    return _open(builder, config, streaming)


def _open(builder: DatasetBuilder, config: SourceConfig, streaming: bool, summary: str | None = None) -> Loaded:
    """What a builder has prepared or streams; of tars, an index or a stream of our own."""
    builder = fitted(builder)
    by_split = builder.config.data_files or {}
    folders = {os.path.dirname(file) for files in by_split.values() for file in files}
    folder = folders.pop() if len(folders) == 1 else None
    files = [file for part in names_in(config.split) for file in by_split.get(part, ())]
    tars: Sequence[str] = ()
    if isinstance(builder, WebDataset):
        dataset, tars = open_tars(by_split, config, streaming)
    else:
        dataset = (open_stream if streaming else prepare)(builder, config.split)
    if summary is None:
        rows = "streamed" if streaming else f"{len(dataset):,} rows"
        what = f"{len(files):,} files, {rows}" if files else rows
        summary = _summary(what, config.split, builder.info.splits or by_split)
    elif not streaming:
        summary = f"{counted(len(dataset), 'image')} in {summary}"
    return Loaded(dataset, files, folder, summary=summary, tars=tars)


def _summary(what: str, split: str, splits: Iterable[str]) -> str:
    others = [str(name) for name in splits if name not in names_in(split)]
    return f"{what}; split {split}" + (f" (also: {', '.join(others)})" if others else "")
