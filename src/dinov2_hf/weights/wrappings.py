"""Where in a file a backbone is: under which keys, prefixes and wrappers of training code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MARKERS = (
    (
        "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.weight",
        "embedder.embedder.convolution.weight",
        "layer1.0.conv1.weight",
    ),
    ("embeddings.cls_token", "cls_token", "embeddings.position_embeddings", "pos_embed"),
)
"""Tensors that every backbone has, under the names of transformers and the original ones (which are timm's): a vision
transformer, or a ResNet. What stands before one was wrapped around the backbone: `model.`, `backbone.`, `pretrained.`,
`teacher.backbone.`, or any other. The second are looked for where none of the first is there: a damaged vision
transformer is still known as one."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that mean nothing, wherever they stand: of data parallelism, compilation, sharding, recomputation."""
UNREADABLE = (
    (
        r"(.*\.)?_?flat_param(_\d+)?",
        "parameters that FSDP has flattened, whose shapes the file does not have",
        "save a full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))",
    ),
    (
        r".*\.(lora_[AB]|lora_magnitude_vector|base_layer)(\..*)?|base_model\.model\..*",
        "an adapter of peft beside or without its model",
        "give the folder of the adapter, or write the model with merge_and_unload().save_pretrained(FOLDER)",
    ),
    (
        r".*\.(SCB|absmax|quant_map|qweight|qzeros|weight_packed|_packed_params)(\..*)?",
        "quantised weights",
        "write them in float32 first (model.dequantize() in transformers)",
    ),
)
"""Names by which it shows that the tensors cannot be taken: a pattern, what they are, what to do."""

_HEAD = re.compile(r"((?:.*\.)?)((?:dino|ibot)_head\..+)")
_PUBLISHED_HEAD = re.compile(r"((?:.*\.)?)head\.((?:mlp\.\d+|last_layer2?)\..+)")
"""Of the codes of DINO and iBOT, beside their backbones."""
_DEEPEST = 8


@dataclass
class Found:
    """The tensors of a file that belong together."""

    tensors: dict[str, Tensor]
    """Of one backbone without what was around it, and of its heads, `dino_head.…`; where there is none, all tensors."""
    training_state: bool = False
    """Whether there were a student and a teacher."""
    left_out: list[str] = field(default_factory=list)
    """Names of what stood beside the backbone."""


def unwrap(state: Any, where: str, network: str = "teacher") -> Found:
    """Finds a backbone and its heads in a state dict, at any depth and behind any prefix.

    Of several the average is taken (`teacher`, `ema`), or the student where `network` says so.

    Raises:
        ValueError: tensors that cannot be taken; several backbones; a student that is not there.
    """
    tensors, places, keys = {}, {}, {}
    for path, tensor in tensors_in(state):
        name = ".".join(part for part in ".".join(path).split(".") if part not in WRAPPERS)
        tensors[name], places[name], keys[name] = tensor, path[:-1], path[-1]
    for name, ours in _our_heads(tensors).items():
        tensor, place, key = tensors.pop(name), places.pop(name), keys.pop(name)
        if ours is not None:
            tensors[ours], places[ours], keys[ours] = tensor, place, key
    for pattern, what, remedy in UNREADABLE:
        if odd := next((name for name in tensors if re.fullmatch(pattern, name)), None):
            raise ValueError(f"{where} holds {what} ({odd}); {remedy}")
    roots = _roots_of(tensors)
    heads = sorted({match[1] for name in tensors if (match := _HEAD.fullmatch(name))})
    roles = {root: _role_of(root) for root in (roots or heads)}
    root = _choose(roles, network, where)
    if root is None:
        depth = _common_depth(list(places.values()))
        return Found({".".join(name.split(".")[depth:]): tensor for name, tensor in tensors.items()})
    training_state = {"teacher", "student"} <= set(roles.values())
    beside = max((head for head in heads if root.startswith(head)), key=len, default=None)
    found, left_out = {}, []
    for name, tensor in tensors.items():
        head, together = _HEAD.fullmatch(name), places[name] == places.get(roots.get(root, ""))
        if head:
            if head[1] == beside:
                found[head[2]] = tensor
        elif together and name.startswith(root):
            found[name.removeprefix(root)] = tensor
        elif together and not training_state:
            left_out.append(keys[name])
    return Found(found, training_state, left_out)


def _our_heads(tensors: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Names of heads in the codes of DINO and iBOT, `head.…`, and ours, `dino_head.…`.

    None where iBOT has the prototypes of CLS a second time, as `last_layer2`, because patches share them.
    """
    ours: dict[str, str | None] = {}
    for name in tensors:
        if match := _PUBLISHED_HEAD.fullmatch(name):
            root, part = match.groups()
            of_cls, of_patches = (
                tensors.get(f"{root}head.{layer}.weight_v") for layer in ("last_layer", "last_layer2")
            )
            again = part.startswith("last_layer2.") and _same(of_cls, of_patches)
            ours[name] = None if again else f"{root}dino_head.{part}"
    return ours


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether there are two tensors with values, and they are equal."""
    return one is not None and other is not None and not one.is_meta and torch.equal(one, other)


def tensors_in(state: Any) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yields each tensor in mappings within mappings, after the keys that lead to it."""
    seen: set[int] = set()  # a mapping may be there twice, or in itself

    def walk(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        if not isinstance(state, Mapping) or id(state) in seen or len(path) > _DEEPEST:
            return
        seen.add(id(state))
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield (*path, str(key)), value
            else:
                yield from walk(value, (*path, str(key)))

    return walk(state, ())


def _roots_of(names: Iterable[str]) -> dict[str, str]:
    """What stands before a marker, empty or with a dot at its end, and the name of that marker's tensor."""
    names = sorted(names)
    for markers in MARKERS:
        roots: dict[str, str] = {}
        for name in names:
            marker = next((each for each in markers if name == each or name.endswith(f".{each}")), None)
            if marker is not None:
                roots.setdefault(name.removesuffix(marker), name)
        if roots:
            return roots
    return {}


def _role_of(root: str) -> str:
    """What a backbone is in training, by the words in its prefix."""
    words = re.split(r"[._]", root)
    return next((role for role in ("teacher", "student", "ema") if role in words), "")


def _choose(roles: Mapping[str, str], network: str, where: str) -> str | None:
    """The prefix of the wanted network; None where there is none."""
    if network == "student" and "student" not in roles.values() and "teacher" in roles.values():
        raise ValueError(f"{where} holds a teacher only; leave --network out")
    for role in ("student",) if network == "student" and "student" in roles.values() else ("teacher", "ema"):
        if role in roles.values():
            roles = {root: found for root, found in roles.items() if found == role}
            break
    if len(roles) > 1:
        names = ", ".join(f"{root or 'without prefix'}" for root in list(roles)[:5])
        raise ValueError(
            f"{where} holds {len(roles)} backbones ({names}); save the state dict of the one that you want to a file"
        )
    return next(iter(roles), None)


def _common_depth(places: list[tuple[str, ...]]) -> int:
    """Of how many keys all of the paths begin alike; wrappers are not counted."""
    depth = 0
    for parts in zip(*places):
        if len(set(parts)) > 1:
            break
        depth += len([part for part in parts[0].split(".") if part not in WRAPPERS])
    return depth


def is_head(name: str) -> bool:
    """Whether this is the name of a tensor of a projection head, with nothing before it."""
    match = _HEAD.fullmatch(name)
    return match is not None and not match[1]


def are_heads(names: Iterable[str]) -> bool:
    """Whether these are names of projection heads and of nothing else."""
    names = list(names)
    return bool(names) and all(map(is_head, names))
