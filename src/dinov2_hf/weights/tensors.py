"""Tensors in one file, under whatever names: how they are read, and what their names say."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import first_line

NOTES = "dinov2_hf"
"""The attribute of a pickled state dict that holds our notes; code that does not know it does not see it."""

_WRAPPERS = ("module.", "teacher.", "student.", "backbone.", "_fsdp_wrapped_module.", "_orig_mod.")
_HEAD = re.compile(r"(dino|ibot)_head\.")


def tensors_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `prefix`, such as `dino_head.`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def without_wrappers(name: str) -> str:
    """A tensor's name without what training code wraps around the backbone."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def summary(items: list[str]) -> str:
    """The first of several items, and how many more there are."""
    return items[0] + (f" (and {len(items) - 1} tensors more)" if len(items) > 1 else "")


def without_classifier(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without those of a classifier, whose names begin with `prefix`; and what to say of these."""
    names = sorted(name for name in state if name.startswith(prefix))
    rest = {name: value for name, value in state.items() if name not in names}
    return rest, [f"{summary(names)} is left out: no part of the backbone"] if names else []


def are_heads(names: Iterable[str]) -> bool:
    """Whether these are names of projection heads and of nothing else."""
    names = list(names)
    return bool(names) and all(_HEAD.match(name) for name in names)


@dataclass
class TensorFile:
    """What a safetensors file or a pickle holds."""

    tensors: dict[str, Tensor]
    """Of a training state those of one network."""
    metadata: dict[str, str] = field(default_factory=dict)
    training_state: bool = False
    """Whether it had a student and a teacher, as training states of the original code."""

    @property
    def heads(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if _HEAD.match(name)}

    @property
    def backbone(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if not _HEAD.match(name)}

    @property
    def names(self) -> set[str]:
        """Of the tensors, without wrappers."""
        return {without_wrappers(name) for name in self.tensors}

    @classmethod
    def read(cls, file: Path, where: str, network: str = "teacher") -> TensorFile:
        """Reads a safetensors file, or a pickle, which is not allowed to run code.

        Raises:
            ValueError: a file that is damaged or holds other objects, a training state without that network.
        """
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt") as opened:
                    return cls({name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {})
            except SafetensorError as error:
                raise ValueError(f"{where} cannot be read: {first_line(error)}; fetch or export it again") from None
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(
                f"{where} is damaged or holds other objects than tensors, which are not loaded as they can run "
                "code; save the state dict alone with torch.save, where you trust the file"
            ) from None
        metadata = dict(getattr(state, NOTES, {}))
        for wrapper in ("state_dict_ema", "model_ema", "model", "state_dict"):
            state = state.get(wrapper, state) if isinstance(state, Mapping) else {}
        networks = {name.partition(".")[0] for name in map(str, state or ())} & {"student", "teacher"}
        if network == "student" and networks == {"teacher"}:
            raise ValueError(f"{where} holds a teacher only; leave --network out")
        if network in networks:
            state = tensors_of(state, f"{network}.") or state[network]
        return cls(_tensors(state), metadata, len(networks) == 2)


def _tensors(state: Any) -> dict[str, Tensor]:
    items = state.items() if isinstance(state, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}
