"""From the configuration of a source to a `datasets` object, the column of its images, and the bytes of each."""

from __future__ import annotations

import glob
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    Value,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils.file_utils import xopen
from PIL import Image as Pillow

from ..config import SourceConfig

_FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# a saved set that is streamed has a shard for so many rows, but no more than that: opening one takes milliseconds
_SAVED_SHARD_ROWS, _MAX_SAVED_SHARDS = 64, 256
_PEEKED_ROWS = 16
_TIMEOUT, _MAX_DOWNLOAD_SECONDS = 15.0, 60.0
_TRIES = 2
_HEADERS = {"User-Agent": "dinov2_hf"}  # some servers refuse the name that urllib gives itself


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


@dataclass(frozen=True)
class ImageColumn:
    """The column of a source that holds its images: encoded bytes, paths, URLs, or `datasets` images of these."""

    dataset: Dataset | IterableDataset
    """This column alone."""
    name: str
    folder: str | None
    """What relative paths in it are relative to."""
    embedded: bool = True
    """Whether the shards of a stream hold the images themselves, and not their paths."""
    shard_files: list[str] | None = None
    """The file of each shard of a stream, where each is one."""
    lengths: list[int] | None = None
    """Rows of each shard of a stream, where they are known."""

    def encoded(self, value: Any, position: str) -> tuple[bytes, str]:
        """Bytes and name of a value of the column; one that is missing or cannot be read has no bytes.

        Args:
            value: as `datasets` gives it, undecoded.
            position: name of a value that has no path.
        """
        if isinstance(value, str):
            path = value if self.folder is None or _URL.match(value) else os.path.join(self.folder, value)
            return _read(path), path
        if not isinstance(value, dict):
            return value or b"", position
        name = value.get("path") or position
        data = value.get("bytes")
        return (_read(name) if data is None else data), name


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


def open_images(config: SourceConfig, streaming: bool) -> ImageColumn:
    """The images at `config.path`.

    Raises:
        ValueError: nothing to read, no such split or column, each with what there is instead.
    """
    return find_images(load(config, streaming), config)


def find_images(loaded: Loaded, config: SourceConfig) -> ImageColumn:
    """The column that holds the images: the one named, or the only one that looks like it.

    Without a name it is the first of the type `Image`, else the only one of bytes, else the only one of texts that end
    like the names of images.

    Raises:
        ValueError: no such column, or none or several that could be it.
    """
    dataset, features, rows = loaded.dataset, loaded.dataset.features, None
    if features is None:  # a stream of CSV or JSON is known when it is read
        try:
            rows = _peek(dataset)
            features = Features.from_arrow_schema(pa.table(rows).schema)
        except ValueError as error:
            raise ValueError(f"{config.path} cannot be read: {error}") from error
    kinds = {name: _kind(feature) for name, feature in features.items()}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if rows is None:
        may_be_text = config.image_column in texts or not {"image", "bytes"} & set(kinds.values())
        rows = _peek(dataset.select_columns(texts)) if texts and may_be_text else {}
    name = _choose_column(kinds, rows, config)
    if kinds[name] is None:
        raise ValueError(
            f"column {name!r} of {config.path} is {features[name]}, not images, their bytes or their paths; its "
            f"columns are {', '.join(kinds)}; name another with image_column=, or cast it with "
            "datasets.Dataset.cast_column(name, datasets.Image()) and save it"
        )
    if kinds[name] == "text" and loaded.folder is None:
        relative = [value for value in rows[name] if value and not os.path.isabs(value) and not _URL.match(value)]
        if relative:
            raise ValueError(
                f"{relative[0]!r} in column {name!r} of {config.path} is a relative path, but its tables lie in "
                "several folders; write absolute paths, or give each folder as a source of its own with data.mix"
            )
    dataset = dataset.select_columns([name])
    if isinstance(features[name], Image):
        dataset = dataset.cast_column(name, Image(decode=False))
    images = ImageColumn(dataset, name, loaded.folder)
    if isinstance(dataset, Dataset):
        return images
    # a folder of images is a single shard of many files
    shard_is_file = len(loaded.files) == dataset.num_shards and Path(loaded.files[0]).suffix in _FORMATS
    return replace(
        images,
        embedded=kinds[name] != "text" and (shard_is_file or not loaded.files),
        shard_files=loaded.files if shard_is_file else None,
        lengths=loaded.lengths,
    )


def _choose_column(kinds: dict[str, str | None], rows: dict[str, list], config: SourceConfig) -> str:
    if config.image_column:
        found = [config.image_column] if config.image_column in kinds else []
    else:
        images = [name for name, kind in kinds.items() if kind == "image"]
        encoded = [name for name, kind in kinds.items() if kind == "bytes"]
        found = images[:1] or encoded or [name for name, values in rows.items() if _name_images(values)]
    where = f"{config.path} (split {config.split!r})"
    if not found:
        given = f"image_column={config.image_column!r}" if config.image_column else "a column of images"
        raise ValueError(
            f"{where} lacks {given}; its columns are {', '.join(kinds) or 'none'}; "
            "name the one with the images with image_column="
        )
    if len(found) > 1:
        raise ValueError(
            f"{where} has several columns that may hold the images: {', '.join(found)}; name one with image_column="
        )
    return found[0]


def _load_saved(path: str, split: str, streaming: bool) -> Loaded:
    """A set that was saved with `save_to_disk`."""
    saved = load_from_disk(path)
    if not isinstance(saved, DatasetDict):
        saved = DatasetDict({str(saved.split or "train"): saved})
    if split not in saved:
        raise ValueError(f"split={split!r} is not in {path}; it has {', '.join(saved)}")
    dataset = saved[split]
    if not streaming:
        return Loaded(dataset, [], path)
    shards = max(min(len(dataset) // _SAVED_SHARD_ROWS, _MAX_SAVED_SHARDS), 1)
    each, more = divmod(len(dataset), shards)
    lengths = [each + (shard < more) for shard in range(shards)]
    return Loaded(dataset.to_iterable_dataset(shards), [], path, lengths)


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
        if len(suffixes) > 1 or suffixes[0] not in _FORMATS:
            given = (
                f"is a {suffixes[0] or 'nameless'} file" if len(suffixes) == 1 else f"is {', '.join(suffixes)} files"
            )
            raise ValueError(f"{path} {given}; give a folder of images, or files that end in {' or '.join(_FORMATS)}")
        builder = load_dataset_builder(
            _FORMATS[suffixes[0]], data_files={"train": [glob.escape(file) for file in files]}
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
    return Loaded(dataset, list(by_split.get(config.split, ())), folders.pop() if len(folders) == 1 else None)


def _kind(feature: Any) -> str | None:
    """`image`, `bytes` or `text`, of which images can be read; None for others."""
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, dict):  # a struct, as images are stored in parquet that `datasets` has not written
        return "bytes" if _kind(feature.get("bytes")) == "bytes" else None
    if isinstance(feature, Value):
        return {"binary": "bytes", "string": "text"}.get(feature.dtype.removeprefix("large_").removesuffix("_view"))
    return None


def _peek(dataset: Dataset | IterableDataset) -> dict[str, list]:
    """The first rows, by column."""
    if isinstance(dataset, Dataset):
        return dataset[:_PEEKED_ROWS]
    return next(iter(dataset.iter(batch_size=_PEEKED_ROWS)), {name: [] for name in dataset.features or ()})


def _name_images(values: list[str | None]) -> bool:
    """Whether all of `values` end like the names of images."""
    suffixes = {PurePosixPath(urlsplit(value).path).suffix.lower() for value in values if isinstance(value, str)}
    return bool(suffixes) and suffixes <= {*Pillow.registered_extensions(), ".npy"}


def _read(path: str) -> bytes:
    """The bytes at a path, a path in an archive or a URL; none where there are none."""
    if path.startswith(("http://", "https://")):
        return _download(path)
    try:
        with xopen(path, "rb") as file:  # reads inside archives, too
            return file.read()
    except (OSError, ValueError):
        return b""


def _download(url: str) -> bytes:
    """The bytes at `url`, tried once more if a try fails, and none if that fails too or takes longer than a minute."""
    for _ in range(_TRIES):
        end, parts = time.monotonic() + _MAX_DOWNLOAD_SECONDS, []
        try:
            request = urllib.request.Request(url, headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                while part := response.read1(1 << 20):
                    parts.append(part)
                    if time.monotonic() > end:  # the timeout is for one part
                        return b""
                data = b"".join(parts)
                if len(data) >= int(response.headers.get("Content-Length") or 0):
                    return data
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return b""
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return b""
