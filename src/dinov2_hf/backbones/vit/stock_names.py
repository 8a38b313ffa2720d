"""From the names that the stock class of transformers 5 has in memory to those of the published files, which are ours.

`save_pretrained` of transformers writes the published names; `state_dict()` and adapters of peft have those in memory.
"""

from __future__ import annotations

import re

IN_MEMORY = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
"""Modules of a layer in memory, and in published files."""

_NAME = re.compile(rf"((?:.*\.)?)layers\.(\d+)\.({'|'.join(map(re.escape, IN_MEMORY))})(\..+)")


def published_name(name: str) -> str:
    """The name of a tensor in published files; a name that is not one in memory stays what it is."""
    match = _NAME.fullmatch(name)
    return name if match is None else f"{match[1]}encoder.layer.{match[2]}.{IN_MEMORY[match[3]]}{match[4]}"
