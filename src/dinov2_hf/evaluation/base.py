"""What every evaluator takes and yields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..config import SourceConfig
from ..config.checks import multiple_of_patch
from ..config.evaluations import EvaluationConfig
from ..data import EvalTransform
from ..data.transform import resize_for
from ..features import FeatureExtractor, FeatureSet, gather_features
from ..features.extract import GEM_POWER
from .datasets import LabeledImages

Config = TypeVar("Config", bound=EvaluationConfig)
Item = TypeVar("Item")
AnySource = TypeVar("AnySource", bound=SourceConfig)


@dataclass(frozen=True)
class Result:
    """One number, with its name and interval."""

    metric: str
    """Its key in JSON and logs, such as `accuracy_k20`; another for each result of an evaluator."""
    value: float
    title: str
    """For people, with the unit: `k-NN accuracy (%), k = 20`. The same in every evaluation."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval over the images of the test set."""
    dataset: str | None = None
    """Name of another set than the test set."""
    kind: str | None = None
    """The Hub's word for the metric, such as `accuracy`; default: `metric`."""
    note: str = ""
    """What else was found, such as the setting that was chosen."""


@dataclass
class Evaluation(Generic[Config]):
    """A backbone and the images to try it on. Evaluators are collective: all processes call them.

    The type argument is the configuration of the evaluator.
    """

    backbone: FeatureExtractor
    config: Config
    accelerator: Accelerator
    output: Path | None = None
    """Folder for what an evaluator writes beside its results; None for nothing."""
    feature_dtype: torch.dtype = torch.float32
    """In which features are held and kept on disk."""
    sets: dict[str, LabeledImages] = field(default_factory=dict, repr=False)
    """Sets that are open already."""

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def transform(self) -> EvalTransform:
        """That of the model, with the sizes of the configuration where it has any.

        `resize_size` is then the short side, and where only `crop_size` is set, images are resized to `resize_for` it.

        Raises:
            ValueError: the patch does not divide the crop.
        """
        own, config = self.backbone.transform, self.config
        resize = config.resize_size or (resize_for(config.crop_size) if config.crop_size else own.resize_size)
        transform = replace(own, resize_size=resize, crop_size=config.crop_size or own.crop_size)
        for side in transform.size:
            multiple_of_patch("crop_size", side, self.backbone.stride)
        return transform

    def labeled(self, source: SourceConfig, name: str = "data") -> LabeledImages:
        """The labelled images at `source`, opened once.

        Raises:
            ValueError: nothing there that can be read, or no labels.
        """
        return open_labeled(given(source, name), self.sets, name)

    def features(
        self,
        images,
        layers: int = 1,
        parts: Sequence[str] = ("cls",),
        transform=None,
        description: str = "Features",
        gem_power: float = GEM_POWER,
    ) -> FeatureSet:
        """Features of all readable images, in float32 but for `patches`, see `gather_features`. Collective."""
        config = self.config
        found = gather_features(
            self.backbone,
            images,
            transform or self.transform,
            self.accelerator,
            layers=layers,
            parts=parts,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            cache=Path(config.cache_dir).expanduser() if config.cache_dir else None,
            dtype=self.feature_dtype,
            gem_power=gem_power,
            description=description,
        )
        found.parts = {name: part if name == "patches" else part.float() for name, part in found.parts.items()}
        return found

    def progress(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """A bar over `items`, on the main process only."""
        return tqdm(items, description, total, leave=False, disable=not self.is_main)


def given(source: AnySource, name: str, what: str = "images") -> AnySource:
    """A source that is there.

    Raises:
        ValueError: its path is not set.
    """
    if not source.path:
        raise ValueError(f"{name}.path is not set; give the {what}: {name}.path=/my/{what}")
    return source


def open_labeled(source: SourceConfig, sets: dict[str, LabeledImages], name: str = "") -> LabeledImages:
    """Returns the labelled images at `source`, which the log calls `name`; `sets` holds those that are open already.

    Raises:
        ValueError: nothing there that can be read, or no labels.
    """
    key = repr(asdict(source))
    if key not in sets:
        sets[key] = LabeledImages(source, name)
    return sets[key]
