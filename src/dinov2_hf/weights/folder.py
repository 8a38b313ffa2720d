"""What transformers loads: a folder or a name on the Hub, ours with heads and preprocessor beside the backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from ..backbones import Dinov2Model, PretrainedBackbone, ViTConfig, family_of_model_type, load_stock_backbone
from ..backbones.index import check_indices
from ..config.limits import check_config
from ..files import first_line
from .base import Format, Place, Weights, misfits
from .names import VIT, names_of, published_names
from .notes import Notes
from .original import Converted, config_from_original, to_original, weights_of_file
from .positions import rule_remarks
from .preprocessor import read_settings
from .tensors import (
    PARTS,
    TensorFile,
    left_out,
    read_safetensors,
    refuse_integers,
    summary,
    tensors_of,
)

HEADS_FILE = "heads.safetensors"
"""Where an exported model keeps its heads, beside the backbone's `model.safetensors`."""
PREPROCESSOR_FILE = "preprocessor_config.json"


def read_folder(place: Place) -> Weights:
    """Reads a model in a folder or on the Hub, with the heads that our exports have beside it.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: weights that do not fit their config, or not a model of ours.
    """
    path, where = place.path, place.where
    if Path(path).is_file():
        path = str(Path(path).parent)
    kind = _class_of(path, where)
    try:
        config = kind.config_class.from_pretrained(path)
        files = _weights_at(path)
        heads, preprocessor = _beside(path, HEADS_FILE), _beside(path, PREPROCESSOR_FILE)
        settings = read_settings(preprocessor) if preprocessor else None
    except OSError as error:
        raise FileNotFoundError(
            f"{where} is not a run, a folder with a model, an original, timm or ONNX file, or a model on the Hub "
            f"that can be reached ({first_line(error)})"
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where} cannot be read: {first_line(error)}; give a DINOv2 model that transformers loads"
        ) from None

    with torch.device("meta"):
        parts = tuple(f"{name}." for name, _ in kind(config).named_children())

    def read(device: str) -> tuple[dict[str, Tensor], list[str]]:
        return _of_backbone(read_safetensors(files, where, device)[0], kind, parts, where)

    def network(_: str) -> dict[str, Tensor]:
        tensors = read_safetensors([heads], where, place.device)[0] if heads else {}
        return tensors | {f"backbone.{name}": value for name, value in read(place.device)[0].items()}

    shapes, others = read("meta")
    weights = Weights(
        where,
        f"{'folder' if Path(path).is_dir() else 'model on the Hub'} that transformers loads",
        config,
        network,
        place.network,
        make=kind,
        load=None if place.is_file or not _has_stock_class(config) else lambda: load_stock_backbone(path, where),
        preprocessor=settings,
        remarks=left_out(others),
    )
    if problems := misfits(shapes, weights.skeleton().state_dict()):
        raise ValueError(
            f"the weights at {where} do not fit the config.json beside them: {summary(problems)}; "
            "fetch or export the model again"
        )
    if heads:
        read_safetensors([heads], where, "meta")
    refuse_integers(shapes, where)
    return weights


def _of_backbone(
    tensors: Mapping[str, Tensor], kind: type[Any], parts: tuple[str, ...], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a backbone as its class names them, and the names of others in the same files.

    Args:
        parts: what the names of the backbone's tensors begin with; others, as of a classifier, are left out.
    """
    if kind is Dinov2Model:
        found = TensorFile.of(tensors, where)
        state, others = _split(published_names(found.backbone), parts)
        return state, [*found.left_out, *others]
    tensors = published_names(tensors)
    prefix = f"{kind.base_model_prefix}."
    inner = {name for name in tensors if name.startswith(prefix)}
    state, others = _split(tensors_of(tensors, prefix) if inner else tensors, parts)
    return state, [*others, *sorted(tensors.keys() - inner if inner else ())]


def _split(tensors: Mapping[str, Tensor], parts: tuple[str, ...] = PARTS) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors whose names begin with one of `parts`, and the names of others beside them, as of a classifier."""
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}
    return inside, [name for name in tensors if name not in inside]


def _weights_at(path: str) -> list[Path]:
    """The safetensors files of a model in a folder or on the Hub: one, or the parts that an index names.

    Raises:
        OSError: none is there.
        ValueError: an index that is damaged or names files elsewhere.
    """
    check_indices(path)
    if single := cached_file(path, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False):
        return [Path(single)]
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise FileNotFoundError(f"{path} has no file named {SAFE_WEIGHTS_NAME}")
    return [Path(part) for part in get_checkpoint_shard_files(path, index)[0]]


def _has_stock_class(config: PreTrainedConfig) -> bool:
    """Whether transformers has a class of its own for the `model_type` of our config."""
    return config.model_type in CONFIG_MAPPING and CONFIG_MAPPING[config.model_type] is not type(config)


def _class_of(path: str, where: str) -> type[Any]:
    """The class of the family whose `model_type` is in the `config.json` at a path; `Dinov2Model` where none is.

    Raises:
        ValueError: a config that asks for more than `config.limits` allows.
    """
    try:
        settings = PreTrainedConfig.get_config_dict(path)[0]
        model_type = settings.get("model_type", "")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # what is wrong is said when it is read
        return Dinov2Model
    check_config(settings, f"the config.json of {where}")
    family = family_of_model_type(model_type)
    return family.backbone if family else Dinov2Model


def _beside(path: str, name: str) -> Path | None:
    """A further file of a folder or a repository, where it has it."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except EntryNotFoundError:  # as most are published
        return None


def read_file(place: Place) -> Weights:
    """Reads a file under the names of the interchange format, with the `config.json` beside it where there is one."""
    file = Path(place.path)
    if file.name == "model.safetensors" and (file.parent / "config.json").is_file():
        return read_folder(place)
    state, others = _split(published_names(place.file.backbone))
    rules: dict[str, float] = {"interpolate_offset": 0.0}  # and what else the stock class of the family has
    if names_of(state) is VIT:
        rules["layer_norm_eps"] = ViTConfig().layer_norm_eps

    def convert(notes: Notes) -> Converted:
        original = to_original(state)
        return state, lambda **settings: config_from_original(original, **settings)

    kind = "file under the names of transformers, without its config.json"
    return weights_of_file(place, kind, convert, left_out(others), **rules)


def has_our_names(place: Place) -> bool:
    """Whether a file has a backbone under the names of the interchange format, which transformers takes too."""
    return "embeddings.patch_embeddings.projection.weight" in place.file.tensors


def write_folder(folder: Path, backbone: PretrainedBackbone, preprocessor: Mapping[str, Any]) -> None:
    """Writes `model.safetensors` and `config.json` as the stock class names them, and `preprocessor_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(dict(preprocessor), indent=2) + "\n")


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes heads by name to `heads.safetensors`, from which training can continue; no file where there are none."""
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # they may share memory
        for name, state in heads.items()
        for key, tensor in state.items()
    }
    if tensors:
        save_file(tensors, folder / HEADS_FILE, metadata={"format": "pt"})


def folder_usage(path: str, config: PreTrainedConfig) -> str:
    """Python that loads an exported folder."""
    family = family_of_model_type(config.to_dict().get("model_type", ""))
    if not _can_run_in_transformers(config):
        kind = family.backbone if family else Dinov2Model
        return f'model = dinov2_hf.{kind.__name__}.from_pretrained("{path}")'
    arguments = ", ".join(filter(None, [f'"{path}"', family.loading if family else ""]))
    return f"model = transformers.AutoModel.from_pretrained({arguments})"


def folder_limits(config: PreTrainedConfig) -> list[str]:
    """What stock transformers does otherwise than the model."""
    if not _can_run_in_transformers(config):
        return ["transformers takes square images of position embeddings only; load the folder with dinov2_hf"]
    if not hasattr(config, "grid_size"):  # no position embeddings
        return []
    return rule_remarks(config, "transformers", antialias=config.num_register_tokens > 0)


def _can_run_in_transformers(config: PreTrainedConfig) -> bool:
    """Whether the stock class, which takes every grid of position embeddings for a square, can run the model."""
    return not hasattr(config, "grid_size") or config.grid_size[0] == config.grid_size[1]


FORMAT = Format(
    holds=lambda place: not place.is_file or has_our_names(place),
    read=lambda place: read_file(place) if place.is_file else read_folder(place),
    write=write_folder,
    usage=folder_usage,
    limits=folder_limits,
)
