"""The contract that every backbone satisfies, and the registry of families.

Axes: `B` images, `C` channels, `H`, `W` pixels, `h`, `w` rows and columns of patches, `N = h w`, `D` width, `M` wanted
patches.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import FAMILIES, BackboneConfig
from ..config.checks import IMPORT_FIRST

if TYPE_CHECKING:
    from typing_extensions import Self


class Features(NamedTuple):
    """Features of images after one block: in this order everywhere."""

    cls: Tensor
    """`[B, D]`: the CLS token, or pooled features where a network has none."""
    patches: Tensor
    """`[B, D, h, w]`."""


class Tokens(NamedTuple):
    """Tokens of a group of crops after the last block and the final norm."""

    cls: Tensor
    """`[B, D]`."""
    patches: Tensor
    """`[M, D]`: the patches that were wanted, in that order."""


@dataclass(frozen=True, eq=False)
class CropGroup:
    """Crops of one size, with what is masked in them and which of their patches are wanted."""

    pixels: Tensor
    """`[B, C, H, W]`, normalised."""
    mask: Tensor | None = None
    """`[B, N]` bool, True where a patch is masked; None: nowhere."""
    wanted: Tensor | None = None
    """`[M]`, positions in the patches of the group `[B N]`, crop by crop and row by row; None: no patches."""


Layers = Callable[..., list[Features]]
"""Normalised images `[B, C, H, W]` and a number of blocks to the features of the last of them, ascending."""


class Module(Protocol):
    """What is used of `nn.Module` in a backbone: a protocol cannot derive from the class itself."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], *, assign: bool = False) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True, /) -> Self: ...
    def eval(self) -> Self: ...
    def float(self) -> Self: ...
    @property
    def to(self) -> Callable[..., Any]: ...  # overloaded in torch, decorated in transformers


class Backbone(Module, Protocol):
    """What trains and evaluates a backbone uses of it. An `nn.Module` satisfies it; nobody asks for its class.

    A block that has stochastic depth keeps its rate in an attribute `drop_path_rate`. A network with attention between
    a CLS token and patches may also have `attention(pixels)`, which returns the shares of the last block,
    `[B, heads, h, w]`.
    """

    @property
    def width(self) -> int:
        """Channels D of the features."""
        ...

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring patches; the sides of images are multiples of it."""
        ...

    @property
    def takes_masks(self) -> bool:
        """Whether `CropGroup.mask` may be set."""
        ...

    @property
    def blocks(self) -> Mapping[str, nn.Module]:
        """From input to output: the units of compilation, sharding, recomputation and gradient norms."""
        ...

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name`: 0 before the first block, `i + 1` in block `i`, `len(blocks) + 1` after."""
        ...

    def is_patch_embedding(self, name: str) -> bool:
        """Whether the learning rate of the parameter `name` is multiplied by `optim.patch_embed_lr_mult`."""
        ...

    def tokens(self, groups: Sequence[CropGroup]) -> list[Tokens]:
        """One forward over groups of crops of different sizes."""
        ...

    def features(self, pixels: Tensor, layers: int = 1) -> list[Features]:
        """Features of images `[B, C, H, W]` after the last `layers` blocks, ascending, each after the final norm.

        A network may take `final_norm=False` too, for features before it. One whose blocks have other widths or strides
        gives the features of the last one only, and refuses more layers with a ValueError.
        """
        ...


class PretrainedBackbone(Backbone, Protocol):
    """A backbone that is a model of transformers, as those of a family are: runs, exports and cards need it."""

    @property
    def config(self) -> Any: ...
    def num_parameters(self) -> int: ...
    def save_pretrained(self, save_directory: Path, /) -> Any: ...


_ATTRIBUTES = {
    "width": "channels of its features",
    "stride": "pixels between two neighbouring patches",
    "takes_masks": "whether patches can be masked",
    "blocks": "its blocks by name, from input to output",
}
_METHODS = {
    "depth_of": "name",
    "is_patch_embedding": "name",
    "tokens": "groups",
    "features": "pixels, layers=1",
}
_BUILDER = "section, image_size, drop_path_rate"


@dataclass(frozen=True)
class Description:
    """What people read about a backbone."""

    title: str
    """Such as `DINOv2 ViT-S/14 with 4 registers`."""
    what: str
    """What it is, in words: `vision transformer`."""
    card: dict[str, str]
    """Rows of the table of its architecture in a model card."""
    table: dict[str, str]
    """Rows of what `dinov2-hf inspect` prints."""
    outputs: str = "`pooler_output` is the CLS token."
    """How the stock class returns features, beside `last_hidden_state`."""


def describe_backbone(backbone: Backbone) -> Description:
    """Describes a backbone as its family does, or by what every backbone has."""
    family = family_of(backbone)
    if family is not None and family.describe is not None:
        described: Any = backbone  # a family that describes keeps its config in the backbone
        return family.describe(described.config)
    name = family.name if family else type(backbone).__name__
    rows = {"width": str(backbone.width), "blocks": str(len(backbone.blocks)), "stride": f"{backbone.stride} pixels"}
    return Description(
        f"{name} of width {backbone.width}",
        "backbone",
        {key.capitalize(): value for key, value in rows.items()},
        {"backbone": f"{name}, width {backbone.width}, {len(backbone.blocks)} blocks, stride {backbone.stride} pixels"},
    )


@dataclass(frozen=True)
class Family:
    """Backbones of one kind: how a run builds one, and what reads and writes it."""

    name: str
    """`model.family` of a run."""
    config: type
    """Dataclass of the section `model` of a run."""
    backbone: type
    """Class of its backbones."""
    builder: Callable[..., Backbone]
    classifier: type | None = None
    """Transformers model with a linear head on CLS and the mean of the patches, around the backbone as `base_model`."""
    model_types: tuple[str, ...] = ()
    """`model_type` in the `config.json` of published files and of exports, which the stock class writes too."""
    describe: Callable[[Any], Description] | None = None
    """Describes a backbone by its config; None: by what every backbone has."""
    loading: str = ""
    """Arguments of `AutoModel.from_pretrained` that stock transformers needs for an export, such as `option=value`."""

    def build(self, section: Any, image_size: int, drop_path_rate: float) -> Backbone:
        """A backbone with fresh weights.

        Args:
            section: the section `model` of a run.
            image_size: side in pixels of the images that position embeddings are made for.
            drop_path_rate: stochastic depth, share of the samples left out in a block.

        Raises:
            ValueError: the section asks for something that is not installed.
        """
        return self.builder(section, image_size, drop_path_rate)


_FAMILIES: dict[str, Family] = {}
_Registered = TypeVar("_Registered", bound=Callable[..., Any])


def register_backbone(
    name: str,
    *,
    config: type,
    classifier: type | None = None,
    model_types: Sequence[str] = (),
    describe: Callable[[Any], Description] | None = None,
    loading: str = "",
) -> Callable[[_Registered], _Registered]:
    """Registers the decorated class, or function that builds one, as the family `name`.

    The class or function is called as `Family.build` is; a function says in its annotation which class it returns.

    Raises:
        TypeError: the class does not satisfy `Backbone`, or cannot be built; says what is missing.
        ValueError: there is another family of that name.
    """

    def register(builder: _Registered) -> _Registered:
        backbone = builder if inspect.isclass(builder) else _returned_by(builder)
        missing = _missing_of(backbone)
        if not hasattr(backbone, "save_pretrained"):
            missing.append("save_pretrained is missing (runs export with it): derive from transformers.PreTrainedModel")
        if not _takes(builder, _BUILDER):
            missing.append(f"{builder.__qualname__} must take ({_BUILDER})")
        if not (inspect.isclass(config) and is_dataclass(config) and issubclass(config, BackboneConfig)):
            missing.append(f"config={config!r} must be a dataclass that derives from BackboneConfig, the section model")
        if missing:
            raise TypeError(f"{backbone.__qualname__} is not a backbone: {'; '.join(missing)}")
        known = _FAMILIES.get(name)
        if known and _origin(known.builder) != _origin(builder):  # a module that is loaded again may replace its own
            raise ValueError(
                f"family {name!r} is registered already, by {'.'.join(_origin(known.builder))}; take another name"
            )
        FAMILIES[name] = config
        _FAMILIES[name] = Family(name, config, backbone, builder, classifier, tuple(model_types), describe, loading)
        return builder

    return register


def find_family(name: str) -> Family:
    """The family `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in _FAMILIES:
        raise ValueError(f"model.family={name!r} is not one of {', '.join(_FAMILIES)}; {IMPORT_FIRST}")
    return _FAMILIES[name]


def family_of(backbone: Backbone) -> Family | None:
    """The family that a backbone is of; None: of none, as a stock model of transformers."""
    return next((family for family in _FAMILIES.values() if isinstance(backbone, family.backbone)), None)


def family_of_model_type(model_type: str) -> Family | None:
    """The family whose `from_pretrained` reads a `config.json` of this `model_type`."""
    return next((family for family in _FAMILIES.values() if model_type in family.model_types), None)


def recompute_blocks(backbone: Backbone) -> None:
    """Makes the backward pass compute each block again, instead of keeping its activations."""
    # its name in transformers 6; releases before 5.23 have the second only
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if enable := getattr(backbone, name, None):
            enable({"use_reentrant": False})
            return
    for block in backbone.blocks.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def tokens_of_maps(backbone: Backbone, groups: Sequence[CropGroup]) -> list[Tokens]:
    """`Backbone.tokens` out of `Backbone.features`, one forward a group: for networks that take no masks.

    Raises:
        ValueError: a group has a mask.
    """
    found = []
    for group in groups:
        if group.mask is not None:
            raise ValueError(f"{type(backbone).__name__} takes no masks; leave CropGroup.mask out")
        ((cls, patches),) = backbone.features(group.pixels)
        rows = patches.flatten(2).transpose(1, 2).flatten(0, 1)
        found.append(Tokens(cls, rows[:0] if group.wanted is None else rows.index_select(0, group.wanted)))
    return found


def features_of(backbone: Backbone, pixels: Tensor, layers: int, final_norm: bool) -> list[Features]:
    """`Backbone.features`, before the final norm where `final_norm` is false.

    Raises:
        ValueError: a network that gives its features after the final norm only.
    """
    features: Callable[..., list[Features]] = backbone.features
    if final_norm:
        return features(pixels, layers)
    if "final_norm" not in inspect.signature(features).parameters:
        raise ValueError(f"{type(backbone).__name__} gives its features after the final norm only; use final_norm=true")
    return features(pixels, layers, final_norm=False)


def check_layers(layers: int, backbone: Backbone) -> None:
    """Refuses features of blocks that are not there.

    Raises:
        ValueError: `layers` is not in 1 to the number of blocks.
    """
    depth = len(backbone.blocks)
    if not 1 <= layers <= depth:
        raise ValueError(f"layers={layers} of a model of {depth} blocks; use 1 to {depth}")


def _missing_of(backbone: type) -> list[str]:
    """What a class lacks of the contract, in words."""
    declared = {name for parent in backbone.__mro__ for name in inspect.get_annotations(parent)}
    missing = [
        f"{name} is missing ({meaning}): declare it in the class, or make it a property"
        for name, meaning in _ATTRIBUTES.items()
        if not hasattr(backbone, name) and name not in declared
    ]
    for name, arguments in _METHODS.items():
        method = getattr(backbone, name, None)
        if not callable(method):
            missing.append(f"{name}({arguments}) is missing")
        elif not _takes(method, f"self, {arguments}"):
            missing.append(f"{name} must take ({arguments})")
    return missing


def _takes(function: Callable[..., Any], arguments: str) -> bool:
    """Whether a function can be called with `arguments` by position, with and without those that have a default."""
    names = arguments.split(", ")
    signature = inspect.signature(function)
    try:
        signature.bind(*names)
        signature.bind(*(name for name in names if "=" not in name))
    except TypeError:
        return False
    return True


def _returned_by(builder: Callable[..., Any]) -> type:
    try:
        backbone = typing.get_type_hints(builder).get("return")
    except NameError:
        backbone = None
    if not inspect.isclass(backbone):
        raise TypeError(f"{builder.__qualname__} does not say what it builds: annotate the class that it returns")
    return backbone


def _origin(builder: Callable[..., Any]) -> tuple[str, str]:
    return builder.__module__, builder.__qualname__
