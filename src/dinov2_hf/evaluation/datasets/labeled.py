"""Images with class labels, for evaluation."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from ...config import SourceConfig
from ...data.names import few
from ...data.paths import name_in
from ...data.sources import find_images, load


class Labeled(Protocol):
    """A set with labels, of images or of clips: see `LabeledImages`."""

    @property
    def where(self) -> str: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def multi_label(self) -> bool: ...


class LabeledImages:
    """A map-style source of images with class labels.

    `labels` are indices into `names`, `[N]`; where an image has a list of them (`multi_label`), flags `[N, C]`.

    Args:
        config: of the source.
        name: what the log calls it, such as `knn.query`.

    Raises:
        ValueError: no label column, or one of values that are missing.
    """

    def __init__(self, config: SourceConfig, name: str = "") -> None:
        loaded = load(config, streaming=False, name=name)
        self.where = f"{config.path} (split {config.split!r})"
        self._images = find_images(loaded, config)
        self.labels, self.names, self.multi_label = read_labels(loaded.dataset, config)

    @property
    def fingerprint(self) -> str | None:
        """Of the images and their order."""
        return self._images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        data, name = self._images.read(index)
        return data, name_in(self.where, name)

    def title_of(self, index: int) -> str:
        """The class of image `index`, or its classes, for people."""
        label = self.labels[index]
        return (
            ", ".join(self.names[number] for number in np.flatnonzero(label)) if self.multi_label else self.names[label]
        )


def read_labels(dataset: Dataset, config: SourceConfig) -> tuple[np.ndarray, list[str], bool]:
    """Labels, names and whether there are several for each row, as `LabeledImages` has them.

    Raises:
        ValueError: no label column, or one of values that are missing.
    """
    where, features = f"{config.path} (split {config.split!r})", dataset.features
    classes = (name for name, feature in features.items() if isinstance(_inner(feature), ClassLabel))
    label = config.label_column or next(classes, None)
    if label is None or label not in dataset.column_names:
        given = f"label_column={config.label_column!r}" if config.label_column else "a column of the type ClassLabel"
        raise ValueError(
            f"{where} lacks {given}; its columns are "
            f"{few(dataset.column_names)}; name one with label_column=, or give each class a folder"
        )
    feature, values = features[label], dataset[label][:]
    several = isinstance(feature, List)
    if any(value is None for value in values):
        raise ValueError(f"{where} has rows without a value in the column {label!r}; leave them out")
    kind = _inner(feature)
    labels = np.concatenate([np.asarray(value) for value in values]) if several else np.asarray(values)
    if isinstance(kind, ClassLabel):
        names = list(kind.names)
    elif isinstance(kind, Value):
        found, labels = np.unique(labels, return_inverse=True)
        names = [str(value) for value in found]
    else:
        raise ValueError(f"the column {label!r} of {where} is {feature}, not labels; name another")
    if isinstance(kind, ClassLabel) and len(labels) and labels.min() < 0:
        raise ValueError(f"{where} has rows of no class (-1), as sets have whose labels are kept back")
    if several:
        rows = np.repeat(np.arange(len(values)), [len(value) for value in values])
        flags = np.zeros((len(values), len(names)), dtype=bool)
        flags[rows, labels.astype(int)] = True
        labels = flags
    return labels, names, several


def same_classes(first: Labeled, second: Labeled) -> None:
    """Refuses two sets that do not have the same classes in the same order.

    Raises:
        ValueError: naming both.
    """
    if first.multi_label != second.multi_label:
        raise ValueError(
            f"one of {first.where} and {second.where} has lists of labels and the other single ones; "
            "give two splits of one set"
        )
    if first.names != second.names:
        raise ValueError(
            f"the classes of {first.where} ({few(first.names)}) and {second.where} ({few(second.names)}) differ; "
            "give two splits of one set"
        )


def _inner(feature):
    return feature.feature if isinstance(feature, List) else feature
