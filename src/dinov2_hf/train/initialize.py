"""Starting from weights that exist: a run of ours, a released model, an export, an original checkpoint.

The short high-resolution stage (DINOv2, section 4, "Adapting the resolution") and continued pretraining begin here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones import PretrainedBackbone
from ..config import InitConfig
from ..objectives import DINOHead, IBOTHead, Objective, ProjectionHead
from ..objectives.heads import PrototypeLayer
from ..weights import Weights, open_weights, resize_position_embeddings
from ..weights.tensors import summary, tensors_of

logger = logging.getLogger(__name__)

_MASK_TOKEN = "embeddings.mask_token"
_HEAD_KEYS = "hidden_dim", "bottleneck_dim", "num_layers", "batch_norm"


def initialize(objective: Objective[Any], config: InitConfig) -> bool:
    """Loads the weights at `config.path` into the (first) student and its average; position embeddings are resized.

    A run gives the student its student and the teacher its teacher; all else gives both the same.

    Returns:
        Whether heads stay untrained on a backbone that is not, so that they need a warm-up.

    Raises:
        FileNotFoundError: nothing at `config.path`.
        ValueError: another architecture than the config asks for, naming what to set; a file that is damaged, or not
            of a DINOv2 model.
    """
    assert config.path is not None
    source = open_weights(config.path, "init.path")
    missing: set[str] = set()
    student, average = objective.networks[""]
    for networks, role in ((student, "student"), (average, "teacher")):
        tensors = source.network(role)
        for name, network in networks.items():
            state = tensors_of(tensors, f"{name}.")
            if name == "backbone":
                keys = [f"model.{key}" for key in objective.config.model.shape_keys()]
                _load_backbone(cast(PretrainedBackbone, network), state, source, keys, config.channels)
            elif state and config.heads:
                _load(network, state, name, source.where, _keys_of_head(network, name), ", or init.heads=false")
            else:
                missing.add(name)  # student and teacher keep the heads they were built with, which are equal
    centering = getattr(objective, "centering", None)
    if centering and not missing and source.centering.keys() == centering.state_dict().keys():
        centering.load_state_dict(source.centering)
    logger.info(
        "starting from %s: %s%s%s",
        source.where.removeprefix("init.path="),
        "student and teacher" if source.run else "one backbone for both",
        f"; {' and '.join(sorted(missing))} new" if missing else "",
        _changes(source, student["backbone"], config),
    )
    return bool(missing)


def _keys_of_head(network: nn.Module, name: str) -> list[str]:
    """The keys that decide which tensors a network on the backbone has."""
    section = name.removesuffix("_head")
    keys = [f"{section}.num_prototypes"] * isinstance(network, DINOHead)
    keys += [f"{section}.{key}" for key in _HEAD_KEYS] * isinstance(network, ProjectionHead)
    return keys + ["ibot.separate_head", "ibot.num_prototypes"] * isinstance(network, IBOTHead)


def _changes(source: Weights, network: Any, config: InitConfig) -> str:
    """What makes the features of the run other than those of the source."""
    changes = ""
    if (channels := source.num_channels) != (wanted := getattr(network.config, "num_channels", channels)):
        changes += f"; first convolution from {channels} to {wanted} channels by init.channels={config.channels}"
    theirs, ours = (getattr(each, "interpolate_offset", 0.0) for each in (source.config, network.config))
    if theirs != ours:
        changes += (
            f"; crops of other sizes than the global ones differ: model.interpolate_offset={ours:g}, {theirs:g} there"
        )
    there, here = (_MASK_TOKEN in names for names in (source.backbone(), network.state_dict()))
    if there != here:
        changes += "; its token for masked patches is left out" if there else "; the token for masked patches is new"
    return changes


def _load_backbone(
    network: PretrainedBackbone, state: Mapping[str, Tensor], source: Weights, keys: list[str], channels: str | None
) -> None:
    state = {name: tensor.float() for name, tensor in state.items()}
    state = _with_channels(state, network, source, channels)
    if any(name.endswith("position_embeddings") for name in state):
        try:
            state = resize_position_embeddings(state, network.config, source.config)
        except ValueError as error:
            raise ValueError(f"{source.where}: {error}") from None
    fresh = network.state_dict()
    if _MASK_TOKEN in fresh:  # weights of DINO have no such token
        state.setdefault(_MASK_TOKEN, fresh[_MASK_TOKEN])
    else:
        state.pop(_MASK_TOKEN, None)
    _load(network, state, "backbone", source.where, keys)
    there, here = (getattr(config, "num_attention_heads", None) for config in (source.config, network.config))
    if source.knows_num_attention_heads and there != here:  # leaves no trace in the shapes
        raise ValueError(
            f"the backbone at {source.where} has {there} attention heads and here it would have {here}; "
            f"set model.num_attention_heads={there}"
        )


def _with_channels(
    state: dict[str, Tensor], network: PretrainedBackbone, source: Weights, how: str | None
) -> dict[str, Tensor]:
    """The tensors with the patch projection `[D, C, h, w]` brought to the number of channels of the network."""
    changed = {}
    for name, fresh in network.state_dict().items():
        given = state.get(name)
        if given is None or given.ndim != 4 or not network.is_patch_embedding(name) or len(given[0]) == len(fresh[0]):
            continue
        old, new = given.shape[1], fresh.shape[1]
        if how is None:
            raise ValueError(
                f"{source.where} has {old} channels, and model.num_channels={new}; set init.channels=mean, repeat or "
                f"random, or model.num_channels={old}"
            )
        if how == "random":
            changed[name] = fresh
        else:
            changed[name] = torch.einsum("ns,dshw->dnhw", channel_shares(old, new, how).to(given), given)
    return {**state, **changed}


def channel_shares(old: int, new: int, how: str) -> Tensor:
    """How much of each of `old` channels each of `new` ones gets: `[new, old]`; the columns sum to 1.

    Where all channels of an image are equal, the sum over the new channels is then that over the old ones.

    Args:
        old: channels of the source.
        new: channels of the run.
        how: `mean` or `repeat`.
    """
    if how == "mean":
        return torch.full((new, old), 1 / new)
    taken = torch.arange(new)[:, None] % old == torch.arange(old) % new
    return taken / taken.sum(dim=0)


def _load(
    network: nn.Module | PretrainedBackbone,
    state: Mapping[str, Tensor],
    name: str,
    where: str,
    keys: list[str],
    otherwise: str = "",
) -> None:
    """Loads `state`, and says which keys of the config to set where it does not fit."""
    wanted = network.state_dict()
    problems = [
        f"{key} is {_shape(state, key)} there and {_shape(wanted, key)} here"
        for key in sorted(wanted.keys() | state.keys())
        if _shape(wanted, key) != _shape(state, key)
    ]
    if problems:
        raise ValueError(
            f"the {name} at {where} does not fit: {summary(problems)}; "
            f"set {', '.join(keys) or 'its sizes'} as the source has them{otherwise}"
        )
    for place, layer in cast(nn.Module, network).named_modules():
        fixed = isinstance(layer, PrototypeLayer) and layer.fixed_lengths
        if fixed and not bool((state[f"{place}.weight_g"] == 1).all()):
            raise ValueError(
                f"the {name} at {where} has prototypes of other lengths than 1, which "
                f"{name.removesuffix('_head')}.norm_last_layer=true would keep; set it to false{otherwise}"
            )
    network.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"
