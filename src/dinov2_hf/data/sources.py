"""Where images come from: any local `datasets` source or Hub name, map-style or streaming, behind one interface.

A training source is an endless sequence of encoded images. Sample number `n` is the same for every process, worker and
restart: a source of `L` images runs through them in a new random order every `L` numbers (an epoch of the data).
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from datasets.utils.file_utils import xopen

from ..config import SourceConfig

# a stream goes back this far without being read anew: further than the loader looks ahead for a readable image
_KEPT_SAMPLES = 128
_SUFFIX_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Sample:
    """One encoded image."""

    data: bytes
    """The file's bytes."""
    name: str
    """How a person finds it: a path, or the row in its source."""
    epoch: int
    """How often the source had been run through before."""
    index: int
    """Row in the source (map-style) or position in the epoch (streaming)."""


class TrainingSource(Protocol):
    """What the data loader reads from."""

    def read(self, number: int) -> Sample:
        """Sample `number` of the endless sequence. Streaming sources are fastest with rising numbers."""


class MapSource:
    """A training source over a map-style `datasets.Dataset`, shuffled anew every epoch."""

    def __init__(self, dataset: Dataset, image_column: str, seed: int) -> None:
        self._dataset = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
        self._column = image_column
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def read(self, number: int) -> Sample:
        epoch, position = divmod(number, len(self._dataset))
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = (epoch, generator.permutation(len(self._dataset)))
        index = int(self._order[1][position])
        data, name = encoded_bytes(self._dataset[index][self._column], f"row {index}")
        return Sample(data, name, epoch, index)


class StreamSource:
    """A training source over a `datasets.IterableDataset`, shuffled within a buffer, in a new order every epoch.

    Every process and worker reads the whole stream and keeps its own samples, so that the order depends on nothing
    but the seed; a restart reads up to where it left off.
    """

    def __init__(self, dataset: IterableDataset, image_column: str, seed: int, shuffle_buffer: int) -> None:
        dataset = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
        self._dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self._column = image_column
        self._samples: Iterator[Sample] | None = None
        self._number = -1
        self._recent: deque[Sample] = deque(maxlen=_KEPT_SAMPLES)

    def read(self, number: int) -> Sample:
        if self._samples is None or number <= self._number - len(self._recent):
            self._samples, self._number = self._endless(), -1
            self._recent.clear()
        while self._number < number:
            self._recent.append(next(self._samples))
            self._number += 1
        return self._recent[number - self._number - 1]

    def _endless(self) -> Iterator[Sample]:
        epoch = 0
        # `datasets` keeps the epoch in memory that forked workers share, and would shuffle by each other's
        self._dataset = copy.deepcopy(self._dataset)
        while True:
            self._dataset.set_epoch(epoch)
            position = 0
            # .iter() gives all samples in every worker; plain iteration would share them out by worker
            for rows in self._dataset.iter(batch_size=16):
                for image in rows[self._column]:
                    data, name = encoded_bytes(image, f"sample {position} of epoch {epoch}")
                    yield Sample(data, name, epoch, position)
                    position += 1
            if position == 0:
                raise ValueError("the streaming source has no samples; check its path and split")
            epoch += 1


class LabeledImages:
    """A map-style source of images with class labels, for evaluation: `labels` `[N]` index into `names`.

    Raises:
        ValueError: no label column.
    """

    def __init__(self, config: SourceConfig) -> None:
        dataset = load(config, streaming=False)
        image = find_image_column(dataset, config)
        label = config.label_column or _first_of_type(dataset, ClassLabel)
        if label is None or label not in dataset.column_names:
            given = (
                f"label_column={config.label_column!r}" if config.label_column else "a column of the type ClassLabel"
            )
            raise ValueError(
                f"{config.path} (split {config.split!r}) lacks {given}; its columns are "
                f"{', '.join(dataset.column_names)}; name one with label_column=, or give each class a folder"
            )
        self._images = dataset.select_columns([image]).cast_column(image, Image(decode=False))
        self._column = image
        feature, values = dataset.features[label], np.asarray(dataset[label][:])
        if isinstance(feature, ClassLabel):
            self.labels, self.names = values, feature.names
        else:
            found, self.labels = np.unique(values, return_inverse=True)
            self.names = [str(value) for value in found]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        return encoded_bytes(self._images[index][self._column], f"row {index}")


def open_training_source(config: SourceConfig, seed: int, shuffle_buffer: int) -> TrainingSource:
    """The endless sequence of images that `config` describes.

    Raises:
        ValueError: nothing to read, no such split or column, each with what there is instead.
    """
    dataset = load(config, streaming=config.streaming)
    column = find_image_column(dataset, config)
    if config.streaming:
        return StreamSource(dataset, column, seed, shuffle_buffer)
    return MapSource(dataset, column, seed)


def load(config: SourceConfig, streaming: bool) -> Dataset | IterableDataset:
    """The `datasets` object at `config.path`: an image folder, parquet, arrow, a saved set, or a set on the Hub."""
    path = os.path.expanduser(str(config.path))
    local = Path(path)
    try:
        if local.is_file():
            if local.suffix not in _SUFFIX_FORMATS:
                raise ValueError(
                    f"{path} is a {local.suffix or 'nameless'} file; give a folder of images, or a file that ends in "
                    f"{' or '.join(_SUFFIX_FORMATS)}"
                )
            dataset = load_dataset(
                _SUFFIX_FORMATS[local.suffix], data_files={"train": path}, split=config.split, streaming=streaming
            )
        elif (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            dataset = load_from_disk(path)
            if not isinstance(dataset, DatasetDict):
                dataset = DatasetDict({str(dataset.split or "train"): dataset})
            if config.split not in dataset:
                raise ValueError(f"split={config.split!r} is not in {path}; it has {', '.join(dataset)}")
            dataset = dataset[config.split]
            dataset = dataset.to_iterable_dataset() if streaming else dataset
        elif local.exists() or path.startswith(("/", "./", "../")):
            if not local.exists():
                raise ValueError(f"{path} does not exist; give a folder of images, parquet files or a set on the Hub")
            if not any(local.iterdir()):
                raise ValueError(f"{path} is an empty folder; put images into it, or give another")
            dataset = load_dataset(path, split=config.split, streaming=streaming)
        else:
            dataset = load_dataset(path, config.name, split=config.split, streaming=streaming)
    except DatasetNotFoundError as error:
        raise ValueError(f"{path} is neither a folder or file here nor a set on the Hub that can be read") from error
    except FileNotFoundError as error:  # the base of EmptyDatasetError and DataFilesNotFoundError
        raise ValueError(f"{path} has no images or tables that can be read: {error}") from error
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            raise ValueError(f"split={config.split!r} is not in {path}: {error}") from None
        raise
    if not streaming and len(dataset) == 0:
        raise ValueError(f"{path} (split {config.split!r}) has no rows")
    return dataset


def find_image_column(dataset: Dataset | IterableDataset, config: SourceConfig) -> str:
    """The column that holds the images: the one named, or the first of the type `Image`."""
    columns = list(dataset.features or ())
    found = config.image_column or _first_of_type(dataset, Image)
    if found is None or found not in columns:
        given = f"image_column={config.image_column!r}" if config.image_column else "a column of the type Image"
        raise ValueError(
            f"{config.path} (split {config.split!r}) lacks {given}; its columns are {', '.join(columns) or 'none'}; "
            "name the one with the images with image_column="
        )
    if not isinstance(dataset.features[found], Image):
        raise ValueError(
            f"column {found!r} of {config.path} is {dataset.features[found]}, not an Image; "
            "cast it with datasets.Dataset.cast_column(name, datasets.Image()) and save it"
        )
    return found


def encoded_bytes(image: dict[str, Any] | None, position: str) -> tuple[bytes, str]:
    """Bytes and name of an undecoded value of an `Image` column; a missing file or value gives no bytes."""
    if image is None:
        return b"", position
    name = image.get("path") or position
    if image.get("bytes") is not None:
        return image["bytes"], name
    try:
        with xopen(name, "rb") as file:  # reads inside archives, too
            return file.read(), name
    except (OSError, ValueError):
        return b"", name


def _first_of_type(dataset: Dataset | IterableDataset, kind: type) -> str | None:
    features = dataset.features or {}
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)
