"""From the names that the classes of transformers 5 have in memory to those of the published files, which are ours.

`save_pretrained` of transformers writes the published names. `state_dict()` has those in memory, and so do files that
`torch.save`, `safetensors` or accelerate wrote of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

if TYPE_CHECKING:
    from typing_extensions import Self

IN_MEMORY = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}
"""Modules of a layer in memory, and in published files."""
HALVES = ("mlp.gate_proj", "mlp.up_proj")
"""Modules of a layer in memory whose rows are those of one module, `WHOLE`, in published files."""
WHOLE = "mlp.weights_in"

_NAME = re.compile(rf"(.*\blayer\.\d+\.)({'|'.join(map(re.escape, (*IN_MEMORY, *HALVES)))})(\..+)")


def has_names_in_memory(names: Iterable[str]) -> bool:
    """Whether some names are those that a class of transformers 5 has in memory."""
    return any(_NAME.fullmatch(name) for name in names)


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of published files, with gate and value of SwiGLU in one; others keep theirs."""
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            published[name] = tensor
            continue
        layer, module, rest = match.groups()
        if module in IN_MEMORY:
            published[f"{layer}{IN_MEMORY[module]}{rest}"] = tensor
        else:
            halves = [tensors.get(f"{layer}{half}{rest}") for half in HALVES]
            if all(half is not None for half in halves):
                published[f"{layer}{WHOLE}{rest}"] = torch.cat([half for half in halves if half is not None])
            else:  # named where it is missed
                published[name] = tensor
    return published


def names_in_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `published_names`."""
    published = {target: source for source, target in IN_MEMORY.items()}
    pattern = re.compile(rf"(.*\blayer\.\d+\.)({'|'.join(map(re.escape, (*published, WHOLE)))})(\..+)")
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            found[name] = tensor
        elif match[2] == WHOLE:
            found |= {f"{match[1]}{half}{match[3]}": part for half, part in zip(HALVES, tensor.chunk(2))}
        else:
            found[f"{match[1]}{published[match[2]]}{match[3]}"] = tensor
    return found


class TakesStockNames(PreTrainedModel):
    """Loads state dicts and folders under the names in memory too."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Self:
        """As in transformers; of a folder, `model.safetensors` may have the names in memory."""
        path, subfolder = pretrained_model_name_or_path, kwargs.get("subfolder")
        file = Path(path or "", subfolder or "", SAFE_WEIGHTS_NAME)
        if path is None or kwargs.get("state_dict") is not None or not _has_names_in_memory(file):
            return super().from_pretrained(path, *args, **kwargs)
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            known: Any = cls.config_class
            kwargs["config"] = known.from_pretrained(kwargs.get("config") or file.parent)
        for key in ("subfolder", "use_safetensors"):
            kwargs.pop(key, None)
        return super().from_pretrained(None, *args, state_dict=published_names(load_file(file)), **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch, and with the names in memory."""
        if has_names_in_memory(state_dict):
            state_dict = published_names(state_dict)
        return super().load_state_dict(state_dict, *args, **kwargs)


def _has_names_in_memory(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with safe_open(file, "pt") as opened:
            return has_names_in_memory(opened.keys())
    except SafetensorError:  # said when it is read
        return False
