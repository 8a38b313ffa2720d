"""Between the tensor names of ResNets in torchvision, which are timm's too, and those of the interchange format.

Published DINO files of ResNet-50 have these names, as they are or within a training state.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.resnet.configuration import ResNetConfig
from ..backbones.resnet.describe import preset_of
from ..backbones.resnet.modeling import ResNetModel
from .base import Format, Place, Weights
from .folder import read_folder
from .notes import Notes
from .original import Converted, weights_of_file
from .tensors import NOTES, left_out, without_classifier

FIRST, FIRST_OF_STOCK = "layer1.0.conv1.weight", "embedder.embedder.convolution.weight"
"""Tensors that show whose names a file has."""
_COUNTER = "num_batches_tracked"
_KINDS = {"conv": "convolution", "bn": "normalization"}


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's state dict under torchvision's names, renamed to the interchange format.

    Counters of batches that a file lacks, as those of old releases of torch do, are 0.

    Raises:
        ValueError: a name that is not part of such a backbone.
    """
    converted = {}
    for name, tensor in state_dict.items():
        renamed = _to_stock(name)
        if renamed is None:
            raise ValueError(
                f"tensor {name!r} does not belong to a ResNet; give a file of a plain ResNet of torchvision"
            )
        converted[renamed] = tensor
    for name in list(converted):
        if name.endswith(".running_mean"):
            converted.setdefault(name.replace("running_mean", _COUNTER), torch.tensor(0))
    return converted


def to_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_torchvision`.

    Raises:
        ValueError: a name that is not part of a `ResNetModel`.
    """
    renamed = {_to_torchvision(name): tensor for name, tensor in state_dict.items()}
    if None in renamed:
        raise ValueError("these are not the tensors of a ResNetModel; give the state dict of one")
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def _to_stock(name: str) -> str | None:
    """The name of a tensor in the interchange format; None where a ResNet has no such tensor."""
    if match := re.fullmatch(r"(conv1|bn1)\.(\w+)", name):
        return f"embedder.embedder.{_KINDS[match[1][:-1]]}.{match[2]}"
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(conv|bn)(\d+)\.(\w+)", name):
        stage, block, kind, number, rest = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{_KINDS[kind]}.{rest}"
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, number, rest = match.groups()
        kind = ("conv", "bn")[int(number)]
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{_KINDS[kind]}.{rest}"
    return None


def _to_torchvision(name: str) -> str | None:
    """The inverse of `_to_stock`."""
    kinds = {target: source for source, target in _KINDS.items()}
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{kinds[match[1]]}1.{match[2]}"
    pattern = r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)\.(\w+)"
    if match := re.fullmatch(pattern, name):
        stage, block, number, kind, rest = match.groups()
        if number is None:
            return f"layer{int(stage) + 1}.{block}.downsample.{int(kind == 'normalization')}.{rest}"
        return f"layer{int(stage) + 1}.{block}.{kinds[kind]}{int(number) + 1}.{rest}"
    return None


def config_from_resnet(tensors: Mapping[str, Tensor], **overrides: Any) -> ResNetConfig:
    """The architecture of a ResNet, read off the shapes of its tensors in the interchange format.

    Bottlenecks halve the resolution in the 3 x 3 convolution, as torchvision's do: the shapes do not show it.

    Raises:
        ValueError: a tensor that every ResNet has is missing.
    """
    if FIRST_OF_STOCK not in tensors:
        raise ValueError(f"the first convolution ({FIRST_OF_STOCK}) is missing; give a file of a whole ResNet")
    stem = tensors[FIRST_OF_STOCK]
    places = [
        tuple(map(int, match.groups()))
        for name in tensors
        if (match := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", name))
    ]
    widths, depths = {}, {}
    for stage, block, number in sorted(places):  # the last convolution of the last block has the width of the stage
        weight = tensors[f"encoder.stages.{stage}.layers.{block}.layer.{number}.convolution.weight"]
        widths[stage], depths[stage] = weight.shape[0], block + 1
    return ResNetConfig(
        **{
            "num_channels": stem.shape[1],
            "embedding_size": stem.shape[0],
            "hidden_sizes": list(widths.values()),
            "depths": list(depths.values()),
            "layer_type": "bottleneck" if any(number == 2 for *_, number in places) else "basic",
            **overrides,
        }
    )


def write_torchvision(
    path: str | PathLike[str], model: ResNetModel, preprocessor: dict[str, Any] | None = None
) -> None:
    """Writes a `.pth` file of plain tensors that ResNets of torchvision and timm without classifier load.

    Raises:
        ValueError: an architecture that torchvision does not have.
    """
    config = model.config
    widths = [width * (4 if config.layer_type == "bottleneck" else 1) for width in (64, 128, 256, 512)]
    for name, value, known in (
        ("hidden_sizes", config.hidden_sizes, widths),
        ("embedding_size", config.embedding_size, 64),
        ("hidden_act", config.hidden_act, "relu"),
        ("downsample_in_first_stage", config.downsample_in_first_stage, False),
        ("downsample_in_bottleneck", config.downsample_in_bottleneck, False),
    ):
        if value != known:
            raise ValueError(
                f"{name}={value!r}, but ResNets of torchvision have {known!r}; export to hf, which keeps it"
            )
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state = OrderedDict(to_torchvision(tensors))
    setattr(state, NOTES, Notes(config, preprocessor).pack())
    torch.save(state, path)


def torchvision_usage(path: str, config: ResNetConfig) -> str:
    """Python that loads such a file into torchvision and into timm."""
    preset, channels = preset_of(config), config.num_channels
    kind = "Bottleneck" if config.layer_type == "bottleneck" else "BasicBlock"
    made = f"torchvision.models.resnet.ResNet(torchvision.models.resnet.{kind}, {config.depths})"
    lines = [
        f"model = torchvision.models.{preset}()" if preset else f"model = {made}",
        "model.fc = torch.nn.Identity()",
    ]
    if channels != 3:
        lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)")
    lines.append(f'model.load_state_dict(torch.load("{path}", weights_only=True))')
    if preset:
        given = f", in_chans={channels}" if channels != 3 else ""
        lines.append(f'# or timm.create_model("{preset}", num_classes=0{given}, checkpoint_path="{path}")')
    return "\n".join(lines)


def has_resnet_names(place: Place) -> bool:
    """Whether a file has the tensors of a ResNet, under torchvision's names or those of the interchange format."""
    return place.is_file and bool({FIRST, FIRST_OF_STOCK} & place.file.tensors.keys())


def read_torchvision(place: Place) -> Weights:
    """Reads a file of a ResNet; of an export the folder that it is in.

    Raises:
        ValueError: not a whole ResNet, or a number of attention heads.
    """
    file, stock = Path(place.path), FIRST_OF_STOCK in place.file.tensors
    if place.num_attention_heads is not None:
        raise ValueError(f"{place.where} is a ResNet, which has no attention heads; leave --num-attention-heads out")
    if stock and file.name == "model.safetensors" and (file.parent / "config.json").is_file():
        return read_folder(place)
    prefix = "classifier." if stock else "fc."
    state, classifier = without_classifier(place.file.backbone, prefix)

    def convert(notes: Notes) -> Converted:
        tensors = state if stock else from_torchvision(state)
        return tensors, lambda **settings: config_from_resnet(tensors, **settings)

    kind = (
        "ResNet under the names of transformers, without its config.json" if stock else "ResNet of torchvision or timm"
    )
    weights = weights_of_file(place, kind, convert, left_out(classifier))
    return replace(weights, make=ResNetModel, knows_num_attention_heads=True)  # there are none


FORMAT = Format(
    holds=has_resnet_names,
    read=read_torchvision,
    write=write_torchvision,
    suffix=".pth",
    families=("resnet",),
    usage=torchvision_usage,
)
