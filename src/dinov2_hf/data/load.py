"""From the configuration of a source to a `datasets` object."""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..config import SourceConfig
from .fetch import is_url

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
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
    """Of a set saved with `save_to_disk`."""

    def listing(self) -> dict[str, Any]:
        """What the source is made of, the same wherever it lies: `count` of `unit` (images or files), and a `digest`.

        The digest is of the names of all files, relative to the folder that they share, and of the sizes of tables and
        tars; of a set on the Hub, of names that contain the revision; of a saved set, of its fingerprint.
        """
        digest = hashlib.sha256((self.fingerprint or "").encode())
        root = os.path.commonprefix([min(self.files), max(self.files)]).rpartition("/")[0] + "/" if self.files else ""
        tables = bool(self.files) and Path(self.files[0]).suffix in FORMATS
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


def load(config: SourceConfig, streaming: bool) -> Loaded:
    """What lies at `config.path`: `docs/data.md` has the kinds of sources.

    Raises:
        ValueError: nothing to read, no such split, each with what there is instead.
    """
    path = os.path.expanduser(str(config.path))
    try:
        if Path(path, "state.json").is_file() or Path(path, "dataset_dict.json").is_file():
            loaded = _load_saved(path, config.split, streaming)
        else:
            loaded = _load_files(path, config, streaming)
    except DatasetNotFoundError as error:
        raise ValueError(f"{path} is neither a folder or file here nor a set on the Hub that can be read") from error
    except FileNotFoundError as error:  # the base of EmptyDatasetError and DataFilesNotFoundError
        raise ValueError(f"{path} has no images or tables that can be read: {error}") from error
    except DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            raise ValueError(f"split={config.split!r} is not in {path}: {error}") from None
        raise error if path in str(error) else ValueError(f"{path} cannot be read: {error}") from error
    if isinstance(loaded.dataset, Dataset) and len(loaded.dataset) == 0:
        raise ValueError(f"{path} (split {config.split!r}) has no rows")
    return loaded


def _load_saved(path: str, split: str, streaming: bool) -> Loaded:
    """A set that was saved with `save_to_disk`."""
    saved = load_from_disk(path)
    if not isinstance(saved, DatasetDict):
        saved = DatasetDict({str(saved.split or "train"): saved})
    if split not in saved:
        raise ValueError(f"split={split!r} is not in {path}; it has {', '.join(saved)}")
    dataset = saved[split]
    if not streaming:
        return Loaded(dataset, [], path, fingerprint=dataset._fingerprint)
    shards = max(min(len(dataset) // _SAVED_SHARD_ROWS, _MAX_SAVED_SHARDS), 1)
    each, more = divmod(len(dataset), shards)
    lengths = [each + (shard < more) for shard in range(shards)]
    return Loaded(dataset.to_iterable_dataset(shards), [], path, lengths, dataset._fingerprint)


def _load_files(path: str, config: SourceConfig, streaming: bool) -> Loaded:
    """A folder, a file, a pattern of files, or a set on the Hub."""
    local = Path(path)
    if local.is_dir():
        if not any(local.iterdir()):
            raise ValueError(f"{path} is an empty folder; put images into it, or give another")
        builder = load_dataset_builder(path, config.name)
    elif local.is_file() or glob.has_magic(path):
        files = [path] if local.is_file() else sorted(glob.glob(path, recursive=True))
        if not files:
            raise ValueError(f"no file is called {path}; give a folder, or a pattern that files here match")
        suffixes = sorted({Path(file).suffix for file in files})
        if len(suffixes) > 1 or suffixes[0] not in FORMATS:
            given = (
                f"is a {suffixes[0] or 'nameless'} file" if len(suffixes) == 1 else f"is {', '.join(suffixes)} files"
            )
            raise ValueError(f"{path} {given}; give a folder of images, or files that end in {' or '.join(FORMATS)}")
        builder = load_dataset_builder(
            FORMATS[suffixes[0]], data_files={"train": [glob.escape(file) for file in files]}
        )
    elif path.startswith(("/", "./", "../")):
        raise ValueError(f"{path} does not exist; give a folder of images, parquet files or a set on the Hub")
    else:
        builder = load_dataset_builder(path, config.name)
    if streaming:
        dataset = builder.as_streaming_dataset(split=config.split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=config.split)
    by_split = builder.config.data_files or {}
    folders = {os.path.dirname(file) for files in by_split.values() for file in files}
    parts = [part.partition("[")[0].strip() for part in config.split.split("+")]  # of `train[:10%]+validation`
    files = [file for part in parts for file in by_split.get(part, ())]
    return Loaded(dataset, files, folders.pop() if len(folders) == 1 else None)
