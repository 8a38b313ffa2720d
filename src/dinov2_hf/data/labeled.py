"""Images with class labels, for evaluation."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel

from ..config import SourceConfig
from .load import find_images, load


class LabeledImages:
    """A map-style source of images with class labels: `labels` `[N]` index into `names`.

    Raises:
        ValueError: no label column.
    """

    def __init__(self, config: SourceConfig) -> None:
        loaded = load(config, streaming=False)
        dataset = loaded.dataset
        self._images = find_images(loaded, config)
        classes = (name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel))
        label = config.label_column or next(classes, None)
        if label is None or label not in dataset.column_names:
            given = (
                f"label_column={config.label_column!r}" if config.label_column else "a column of the type ClassLabel"
            )
            raise ValueError(
                f"{config.path} (split {config.split!r}) lacks {given}; its columns are "
                f"{', '.join(dataset.column_names)}; name one with label_column=, or give each class a folder"
            )
        feature, values = dataset.features[label], np.asarray(dataset[label][:])
        if isinstance(feature, ClassLabel):
            self.labels, self.names = values, feature.names
        else:
            found, self.labels = np.unique(values, return_inverse=True)
            self.names = [str(value) for value in found]

    def __len__(self) -> int:
        return len(self._images.dataset)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        return self._images.encoded(self._images.dataset[index][self._images.name], f"row {index}")
