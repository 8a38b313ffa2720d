"""LoRA adapters of peft in a folder: read as the model that they make of the one they were trained on.

`adapter_config.json` says which one that is, `adapter_model.safetensors` has two factors for each module. The names of
modules are those of the class that was trained: that of transformers 5 in memory (`q_proj`) or the published ones, ours
(`query`). peft itself is not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones.dinov2.stock_names import has_names_in_memory, names_in_memory, published_names
from ..backbones.vit.stock_names import published_name
from ..files import first_line
from .base import Format, Place, Weights
from .tensors import left_out, read_safetensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MERGE = (
    "write the whole model: peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(BASE), ADAPTER)"
    ".merge_and_unload().save_pretrained(FOLDER)"
)
"""What to do with an adapter that is not read."""

BEYOND: dict[str, tuple[str, ...]] = {
    "init_lora_weights": ("pissa", "olora", "corda", "loftq", "lora_ga"),
    "use_qalora": (),
    "use_bdlora": (),
    "layer_replication": (),
    "target_parameters": (),
    "kasa_config": (),
    "monteclora_config": (),
    "fan_in_fan_out": (),
}
"""Settings of LoRA that change the model itself, or add otherwise: beginnings of values, or any value."""

_MODULE = re.compile(r"base_model\.model\.(?:.*?\.)??((?:embeddings|encoder|layers|layernorm)\b.*)")
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")


def read_adapter(place: Place) -> Weights:
    """Reads an adapter and the model that it was trained on, and adds the one to the other.

    Raises:
        FileNotFoundError: there is no file of weights, or no model at the path that the adapter names.
        ValueError: another adapter than LoRA, one without a model, or one that does not fit its model.
    """
    from .formats import open_weights  # which asks this format

    folder, where = Path(place.path), place.where
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        kind, base = config["peft_type"], config["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} has a damaged {CONFIG_FILE} ({first_line(error)}); fetch it again") from None
    if kind != "LORA":
        raise ValueError(f"{where} is an adapter of the kind {kind} of peft, and only LORA is read; {MERGE}")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{where} does not say which model it was trained on; set base_model_name_or_path in it")
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(f"{where} has no file named {WEIGHTS_FILE}; save the adapter as safetensors")
    for key, beyond in BEYOND.items():
        value = config.get(key)
        if value and (not beyond or str(value).startswith(beyond)):
            raise ValueError(f"{where} has {key}={value!r}, a kind of LoRA that is not read; {MERGE}")
    if holds_adapter(Place(base)):
        raise ValueError(f"{where} was trained on {base}, another adapter; {MERGE}")
    weights = open_weights(base, f"base_model_name_or_path in {where}")
    factors, _ = read_safetensors([folder / WEIGHTS_FILE], where)
    try:
        tensors, others = merge(weights.backbone(), factors, config, where)
    except (TypeError, AttributeError, re.error) as error:
        raise ValueError(f"{where} has a damaged {CONFIG_FILE} ({first_line(error)}); fetch it again") from None
    adapted = weights.resized(weights.config, tensors)
    return replace(
        adapted,
        where=where,
        kind=f"LoRA adapter of peft, added to {base} ({weights.kind})",
        asked=place.network,
        has_student=False,
        load=None,
        run=None,
        run_config=None,
        checkpoint=None,
        step=0,
        student="",
        digest=None,
        read_centering=dict,
        remarks=[*weights.remarks, *left_out(others)],
        _networks={},
    )


def merge(
    tensors: Mapping[str, Tensor], factors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Adds the products of the factors to the weights of a backbone.

    Args:
        tensors: of the backbone, under the published names.
        factors: of the adapter, under the names of peft.
        config: what `adapter_config.json` holds.
        where: what messages call the adapter.

    Returns:
        The tensors of the adapted backbone, and the names of those in the adapter that belong to another part.

    Raises:
        ValueError: a module that the backbone does not have, or a part of LoRA that is not read.
    """
    inside = {match[1]: name for name in factors if (match := _MODULE.fullmatch(name))}
    others = sorted(factors.keys() - inside.values())
    modules: dict[str, dict[str, Tensor]] = {}
    whole = {}
    asked: dict[str, str] = {}
    for given, name in inside.items():
        short = published_name(given)  # of the stock ViT; those of DINOv2 become names in memory below
        if (match := _FACTOR.fullmatch(short)) and (named := _FACTOR.fullmatch(given)):
            modules.setdefault(match[1], {})[match[2]] = factors[name].float()
            asked[match[1]] = named[1]
        elif "lora_" in short or "base_layer" in short:
            raise ValueError(f"{where} has {name}, which is not read; {MERGE}")
        else:  # of modules_to_save
            whole[short] = factors[name]
    adapted = dict(tensors)
    in_memory = has_names_in_memory(f"{name}.weight" for name in modules)
    if in_memory or has_names_in_memory(whole):
        adapted = names_in_memory(adapted)
    for module, parts in modules.items():
        name = f"{module}.weight"
        if not {"lora_A", "lora_B"} <= parts.keys() or name not in adapted:
            raise ValueError(f"{where} has {module}, which is not a whole part of the model it names; {MERGE}")
        weight, first, second = adapted[name], parts["lora_A"], parts["lora_B"]
        if (len(second), *first.shape[1:]) != tuple(weight.shape) or second.shape[1] != len(first):
            raise ValueError(
                f"{where} changes {name} by {list(second.shape)} x {list(first.shape)}, and it is {list(weight.shape)} "
                "in the model it names; set base_model_name_or_path to the model it was trained on"
            )
        changed = weight.float().flatten(1) + _scale(asked[module], len(first), config) * second.flatten(
            1
        ) @ first.flatten(1)
        if "lora_magnitude_vector" in parts:  # DoRA: direction and length apart
            changed = changed / changed.norm(dim=1, keepdim=True) * parts["lora_magnitude_vector"].reshape(-1, 1)
        adapted[name] = changed.reshape(weight.shape).to(weight.dtype)
    return published_names(adapted | whole), others


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The factor of a module's product, as peft takes it: `alpha / rank`, or `alpha / sqrt(rank)`."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    found = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    alpha = float(next(found, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def holds_adapter(place: Place) -> bool:
    """Whether a folder has an adapter, and not a whole model beside it."""
    return (Path(place.path) / CONFIG_FILE).is_file() and not (Path(place.path) / "config.json").is_file()


FORMAT = Format(holds=holds_adapter, read=read_adapter)
