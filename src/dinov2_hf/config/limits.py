"""How large a model may be that a config or a file asks for: what is larger is refused before anything is made of it.

Two rules, because two kinds of files come from strangers:

- A **config** holds numbers only. Loops and lists are made of them before any tensor is read, so that a small file
  could keep a machine busy for days. `LARGEST` bounds each of them, far above every published vision model.
- A **file of tensors** says how large its tensors are before they are read. None is larger than the file on the disk:
  `check_size` compares.

Where a config asks for other tensors than the file beside it has, their shapes are compared before they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LARGEST = {
    "num_hidden_layers": 1_000,  # ViT-22B has 48, the deepest published residual network 1,001
    "depth": 1_000,
    "depths": 1_000,
    "n_layer": 1_000,
    "n_layers": 1_000,
    "num_layers": 1_000,
    "num_blocks": 1_000,
    "layers": 1_000,
    "hidden_size": 65_536,  # ViT-22B has 6,144
    "embed_dim": 65_536,
    "intermediate_size": 1_048_576,
    "num_attention_heads": 65_536,
    "mlp_ratio": 1_024,
    "num_register_tokens": 65_536,
    "num_channels": 65_536,
    "image_size": 1_048_576,
    "patch_size": 4_096,
    "num_labels": 1_000_000,  # transformers makes a dictionary of them
    "vocab_size": 100_000_000,
}
"""The largest value of each key, where it stands at any depth of a `config.json` or is a key of the section `model`."""

_DEEPEST = 20


def check_config(values: Mapping[str, Any], where: str) -> None:
    """Refuses a config that asks for more than any model has.

    Args:
        values: of a `config.json`, sections in it included.
        where: what messages call it.

    Raises:
        ValueError: naming the key, its value and the limit.
    """
    for key, value in _numbers(values, 0):
        if value > LARGEST[key]:
            shown = value if value < 10**15 else "10^15 or more"
            raise ValueError(f"{where} has {key}={shown}, and no model has more than {LARGEST[key]:,}; correct it")


def _numbers(values: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, float]]:
    """The numbers under keys of `LARGEST`; those of lists each."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            if depth < _DEEPEST:
                yield from _numbers(value, depth + 1)
        elif key in LARGEST:
            several = value if isinstance(value, (list, tuple)) else [value]
            yield from ((key, each) for each in several if isinstance(each, (int, float)))


def check_size(name: str, needed: int, available: int, where: str) -> None:
    """Refuses a tensor that is larger than the file it is said to be in.

    Args:
        name: of the tensor.
        needed: bytes that its shape and type take.
        available: bytes of the file on the disk.
        where: what messages call the file.

    Raises:
        ValueError: naming the tensor.
    """
    if needed > available:
        raise ValueError(f"{where} names {name} of {needed:,} bytes, and the file has {available:,}; fetch it again")
