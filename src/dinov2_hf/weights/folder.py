"""What transformers loads: a folder or a name on the Hub, ours with heads and preprocessor beside the backbone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..backbones import Dinov2Model, PretrainedBackbone, family_of_model_type, load_stock_backbone
from ..files import first_line
from .base import Format, Place, Weights
from .notes import Notes
from .original import Converted, config_from_original, to_original, weights_of_file
from .positions import rule_remarks
from .tensors import summary, without_classifier

HEADS_FILE = "heads.safetensors"
"""Where an exported model keeps its heads, beside the backbone's `model.safetensors`."""
PREPROCESSOR_FILE = "preprocessor_config.json"

_MODEL = r"^dinov2(_with_registers)?\."
"""What a classifier of transformers has before the names of the backbone."""


def read_folder(place: Place) -> Weights:
    """Reads a model in a folder or on the Hub, with the heads that our exports have beside it.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: weights that do not fit their config, or not a model of ours.
    """
    path, where = place.path, place.where
    if Path(path).is_file():
        path = str(Path(path).parent)
    kind = _class_of(path)
    try:
        model, report = kind.from_pretrained(
            path,
            dtype="auto",
            use_safetensors=True,
            key_mapping={r"^dinov2_with_registers\.": ""},  # of a classifier; without registers transformers does it
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
        heads, preprocessor = _beside(path, HEADS_FILE), _beside(path, PREPROCESSOR_FILE)
        tensors = load_file(heads) if heads else {}
        settings = json.loads(preprocessor.read_text()) if preprocessor else None
    except OSError as error:
        raise FileNotFoundError(
            f"{where} is not a run, a folder with a model, an original, timm or ONNX file, or a model on the Hub "
            f"that can be reached ({first_line(error)})"
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"{where} cannot be read: {first_line(error)}; give a DINOv2 model that transformers loads"
        ) from None
    # transformers fills what is missing with fresh weights, and leaves out what is too much
    odd = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    odd += [f"{name} has another shape" for name, *_ in sorted(report["mismatched_keys"])]
    too_much = sorted(report["unexpected_keys"])
    odd += [f"{name} has no place" for name in too_much if re.match(r"(embeddings|encoder|layernorm)\.", name)]
    if odd:
        raise ValueError(
            f"the weights at {where} do not fit the config.json beside them: {summary(odd)}; "
            "fetch or export the model again"
        )
    tensors |= {f"backbone.{name}": value for name, value in model.state_dict().items()}
    return Weights(
        where,
        f"{'folder' if Path(path).is_dir() else 'model on the Hub'} that transformers loads",
        model.config,
        lambda _: tensors,
        place.network,
        make=kind,
        load=None if place.is_file or not _has_stock_class(model.config) else lambda: load_stock_backbone(path, where),
        preprocessor=settings,
        remarks=[f"{summary(too_much)} is left out: no part of the backbone"] if too_much else [],
    )


def _has_stock_class(config: PreTrainedConfig) -> bool:
    """Whether transformers has a class of its own for the `model_type` of our config."""
    return config.model_type in CONFIG_MAPPING and CONFIG_MAPPING[config.model_type] is not type(config)


def _class_of(path: str) -> type[Any]:
    """The class of the family whose `model_type` is in the `config.json` at a path; `Dinov2Model` where none is."""
    try:
        model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type", "")
    except (OSError, ValueError):  # what is wrong is said when it is read
        return Dinov2Model
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
    state = {re.sub(_MODEL, "", name): value for name, value in place.file.backbone.items()}
    state, remarks = without_classifier(state, "classifier.")

    def convert(notes: Notes) -> Converted:
        original = to_original(state)
        return state, lambda **settings: config_from_original(original, **settings)

    kind = "file under the names of transformers, without its config.json"
    return weights_of_file(place, kind, convert, remarks, interpolate_offset=0.0)


def has_our_names(place: Place) -> bool:
    """Whether a file has a backbone under the names of the interchange format, which transformers takes too."""
    plain = {re.sub(_MODEL, "", name) for name in place.file.names}
    return "embeddings.patch_embeddings.projection.weight" in plain


def write_folder(folder: Path, backbone: PretrainedBackbone, preprocessor: Mapping[str, Any]) -> None:
    """Writes `model.safetensors` and `config.json` as the stock class names them, and `preprocessor_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(dict(preprocessor), indent=2) + "\n")


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes heads by name to `heads.safetensors`, from which training can continue; no file where there are none."""
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, state in heads.items()
        for key, tensor in state.items()
    }
    if tensors:
        save_file(tensors, folder / HEADS_FILE, metadata={"format": "pt"})


def folder_usage(path: str, config: PreTrainedConfig) -> str:
    """Python that loads an exported folder."""
    loader = "transformers.AutoModel" if _can_run_in_transformers(config) else "dinov2_hf.Dinov2Model"
    return f'model = {loader}.from_pretrained("{path}")'


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
