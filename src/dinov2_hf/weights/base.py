"""What every format gives: weights at a path, read when they are asked for; and what it declares of itself."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..backbones import Backbone, Dinov2Model, family_of_model_type
from ..config import RunConfig
from ..data import EvalTransform, default_colors
from ..runs import RunFolder
from .preprocessor import colors_of, has_colors, transform_of
from .tensors import TensorFile, summary, tensors_of

logger = logging.getLogger(__name__)


@dataclass
class Place:
    """A path, and what is wanted of the weights there."""

    path: str
    key: str = "SOURCE"
    network: str = "teacher"
    student: str = ""
    num_attention_heads: int | None = None
    device: str = "cpu"

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.key}={self.path}"

    @property
    def is_file(self) -> bool:
        return Path(self.path).is_file()

    @functools.cached_property
    def file(self) -> TensorFile:
        """The tensors in the file at the path, read once.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        return TensorFile.read(Path(self.path), self.where, self.network)


@dataclass
class Weights:
    """A backbone and its heads, wherever they are; what costs time is read when it is asked for."""

    where: str
    """What messages call it: the key and the path, such as `init.path=/my/model`."""
    kind: str
    """What it is, in words."""
    config: PreTrainedConfig
    """Of the backbone; of a model of another family, as transformers reads it."""
    read: Callable[[str], Mapping[str, Tensor]] = field(repr=False)
    """Reads the tensors of `teacher` or `student`, as `network` returns them."""
    asked: str = "teacher"
    """The network that the other methods take where none is named."""
    has_student: bool = False
    """Whether student and teacher are two networks."""
    knows_num_attention_heads: bool = True
    """Otherwise nothing in the source says it, and the config has `original.guess_num_attention_heads`."""
    preprocessor: dict[str, Any] | None = None
    """Configuration of the image processor; None where nothing says it."""
    remarks: list[str] = field(default_factory=list)
    """What was not there, or not taken."""
    side: int | None = None
    """Crops in pixels where nothing says how images are prepared; None: `default_side`."""
    make: Callable[[Any], Backbone] = field(default=Dinov2Model, repr=False)
    """Makes a backbone of a config, of its family."""
    load: Callable[[], Backbone] | None = field(default=None, repr=False)
    """Builds the backbone with the class of transformers; None: transformers does not read it by itself."""
    of_a_family: bool = True
    """Whether a family of ours makes the backbone; otherwise there is `load` only."""
    run: RunFolder | None = None
    """The run that it is a checkpoint of."""
    run_config: RunConfig | None = None
    checkpoint: Path | None = None
    step: int = 0
    """Updates made at the checkpoint."""
    student: str = ""
    """Name of a further student of the run."""
    digest: str | None = None
    """Of the weights of all networks, as the checkpoint records it."""
    read_centering: Callable[[], Mapping[str, Tensor]] = field(default=dict, repr=False)
    _networks: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def network(self, name: str = "") -> dict[str, Tensor]:
        """Returns the tensors of a network: `backbone.…`, `dino_head.…`.

        Args:
            name: `teacher` (the average) or `student`; default: the one that `open_weights` was asked for. Where there
                is one network, it is both.

        Raises:
            ValueError: the tensors are damaged, or not those of a backbone that is ours.
        """
        name = name or self.asked
        if name not in self._networks:
            self._networks[name] = dict(self.read(name))
        return self._networks[name]

    def backbone(self, name: str = "") -> dict[str, Tensor]:
        """Returns the tensors of a backbone, under the names of the interchange format."""
        return tensors_of(self.network(name), "backbone.")

    def heads(self, name: str = "") -> dict[str, dict[str, Tensor]]:
        """Returns the tensors of the projection heads by their names, such as `dino_head`."""
        tensors = self.network(name)
        names = dict.fromkeys(key.partition(".")[0] for key in tensors)
        return {head: tensors_of(tensors, f"{head}.") for head in sorted(names) if head.endswith("_head")}

    @property
    def centering(self) -> Mapping[str, Tensor]:
        """The state of the centering of a run; empty elsewhere."""
        return self.read_centering()

    @property
    def num_channels(self) -> int:
        """Of its images."""
        return getattr(self.config, "num_channels", 3)

    def skeleton(self) -> Backbone:
        """Builds the backbone without weights, on the device `meta`."""
        with torch.device("meta"):
            return self.make(self.config)

    def build(self, network: str = "", attention: str | None = None, stock: bool = False) -> Backbone:
        """Builds the backbone in the dtype of the source, frozen, for evaluation.

        Args:
            network: as in `network`.
            attention: `auto`: eager on CPUs, where it is faster in training, else sdpa; default: as transformers does.
            stock: build it with the class of transformers where that reads the source, in float32. Its features differ
                from those of our class in the last bits.

        Raises:
            ValueError: tensors that are missing, too many or of another shape than the config asks for.
        """
        if self.load is not None and (stock or not self.of_a_family):
            return self.load()
        if attention is not None:
            chosen = "sdpa" if torch.accelerator.is_available() else "eager"
            self.config._attn_implementation = chosen if attention == "auto" else attention
        tensors, model = self.backbone(network), self.skeleton()
        if problems := misfits(tensors, model.state_dict()):
            raise ValueError(f"{self.where} is not a whole backbone: {summary(problems)}; fetch or export it again")
        model.load_state_dict(tensors, assign=True)
        return model.eval().requires_grad_(False)

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of its images, per channel; those of `default_colors` where nothing says them."""
        if self.preprocessor is not None and has_colors(self.preprocessor):
            return colors_of(self.preprocessor, self.num_channels, self.where)
        if self.num_channels == 3:
            logger.warning(
                "%s does not say how its images are normalised; ImageNet's mean and std are taken", self.where
            )
        return default_colors(self.num_channels)

    @property
    def transform(self) -> EvalTransform:
        """How images are prepared for it; `default_transform` where nothing says it.

        Raises:
            ValueError: the preprocessor lacks sizes or colours, or does what `EvalTransform` cannot.
        """
        if self.preprocessor is not None:
            side = self.side or default_side(self.config)
            return transform_of(self.preprocessor, self.num_channels, side, self.where)
        logger.warning(
            "%s has no preprocessor; its images are brought to %d pixels and normalised %s",
            self.where,
            self.default_transform.crop_size,
            "as ImageNet's" if self.num_channels == 3 else "not at all",
        )
        return self.default_transform

    @property
    def default_transform(self) -> EvalTransform:
        """What the released models are used with, in the colours of `default_colors`."""
        side = self.side or default_side(self.config)
        return EvalTransform.of_crop(side, *default_colors(self.num_channels))

    def fingerprint(self) -> str | None:
        """Returns a digest of the weights and architecture that their checkpoint records, by which features are cached.

        None where nothing records one: then the built network is hashed.
        """
        if self.digest is None:
            return None
        settings = self.config.to_dict()
        settings.pop("transformers_version", None)
        parts = [self.digest, self.asked, self.student, settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def resized(self, config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> Weights:
        """The same with other tensors of its backbone, which fit `config`."""
        others = {name: value for name, value in self.network().items() if not name.startswith("backbone.")}
        both = {f"backbone.{name}": value for name, value in tensors.items()} | others
        return replace(self, config=config, read=lambda _: both, _networks={})


def class_of(config: PreTrainedConfig) -> type[Any]:
    """The class of the family that a config is of."""
    family = family_of_model_type(config.model_type)
    assert family is not None, config.model_type
    return family.backbone


def misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with tensors for a network whose tensors are `wanted`, in words, sorted."""
    problems = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    problems += [f"{name} has no place" for name in tensors.keys() - wanted.keys()]
    problems += [
        f"{name} is {list(tensors[name].shape)} and not {list(wanted[name].shape)}"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    ]
    return sorted(problems)


def default_side(config: PreTrainedConfig) -> int:
    """Crops in pixels that the released models are used with: 224, or the size of a model of smaller images."""
    if not hasattr(config, "grid_size"):  # any size is as good
        return 224
    native = min(count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    fits = native >= 224 and not any(224 % patch for patch in config.patch_height_width)
    return 224 if fits else native


@dataclass(frozen=True)
class Format:
    """A way to keep a model: one file beside this one and an entry in `formats.FORMATS`, or `register_format`.

    What is `None` it cannot do.
    """

    holds: Callable[[Place], bool]
    """Whether `read` takes what is at a place. The formats are asked in their order, and the first one reads it."""
    read: Callable[[Place], Weights]
    write: Callable[[Path, Any, dict[str, Any]], None] | None = None
    """Writes a backbone of `families` and the configuration of its image processor to a path where nothing is."""
    suffix: str = ""
    """Of the file that it writes; empty: it writes a folder, which takes heads and a model card too."""
    usage: Callable[[str, Any], str] | None = None
    """Python that loads what was written to a path, by the config of the backbone."""
    families: tuple[str, ...] = ()
    """Families of backbones that it can be written from; none named: all."""
    limits: Callable[[Any], list[str]] | None = None
    """What readers of the format do otherwise than the model, to be said when it is written."""
