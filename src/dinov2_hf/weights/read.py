"""Backbones out of whatever holds one: folders that transformers loads, the Hub, original and timm files, ONNX."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..backbones.dinov2.configuration import Dinov2Config
from ..backbones.dinov2.modeling import Dinov2Model
from ..objectives.heads import HEADS_FILE
from .notes import Notes
from .onnx import read_onnx
from .original import NOTES, config_from_original, from_original, to_original, without_wrappers
from .timm import config_from_timm, from_timm

PREPROCESSOR_FILE = "preprocessor_config.json"

_FILES = (".pth", ".pt", ".bin", ".safetensors", ".onnx")
_TRAINING_STATE = "training state"
_HEAD = re.compile(r"(dino|ibot)_head\.")


@dataclass
class ModelWeights:
    """A backbone and what lay beside it."""

    where: str
    """What messages call the source, such as `init.path=/my/model`."""
    kind: str
    """What the source is, in words."""
    backbone: dict[str, Tensor]
    """Under the names of the interchange format."""
    config: Dinov2Config
    heads: dict[str, Tensor] = field(default_factory=dict)
    """`dino_head.…` and `ibot_head.…`."""
    knows_num_attention_heads: bool = True
    """Otherwise nothing in the source tells, and the config has heads of 64 channels where the width allows it."""
    preprocessor: dict[str, Any] | None = None
    """Configuration of the image processor."""
    remarks: list[str] = field(default_factory=list)
    """What was not there, or not taken."""

    def build(self) -> Dinov2Model:
        """The model, in the dtype of the source, for evaluation.

        Raises:
            ValueError: tensors that are missing, too many or of another shape than the config asks for.
        """
        with torch.device("meta"):
            model = Dinov2Model(self.config)
        wanted = model.state_dict()
        problems = [f"{name} is missing" for name in wanted.keys() - self.backbone.keys()]
        problems += [f"{name} has no place" for name in self.backbone.keys() - wanted.keys()]
        problems += [
            f"{name} is {list(self.backbone[name].shape)} and not {list(wanted[name].shape)}"
            for name in wanted.keys() & self.backbone.keys()
            if self.backbone[name].shape != wanted[name].shape
        ]
        if problems:
            raise ValueError(
                f"{self.where} is not a whole DINOv2 backbone: {_summary(sorted(problems))}; fetch or export it again"
            )
        model.load_state_dict(self.backbone, assign=True)
        return model.eval().requires_grad_(False)


def read_weights(
    path: str,
    name: str = "SOURCE",
    network: str = "teacher",
    num_attention_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> ModelWeights:
    """The backbone at `path`: a folder, a name on the Hub, or a file under original, timm's or our names, or of ONNX.

    Args:
        path: what is there tells by itself what it is.
        name: what messages call the path, such as `init.path`.
        network: `teacher` or `student`, of an original training state that holds both.
        num_attention_heads: where nothing in a file tells.
        dtype: of the tensors; default: as they are stored.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is damaged, or not of a DINOv2 model.
        ImportError: an ONNX file, and onnx is not installed.
    """
    where, file = f"{name}={path}", Path(path)
    if not file.is_file() and file.suffix in _FILES:
        raise FileNotFoundError(f"{where} does not exist")
    if not file.is_file():
        weights = _read_folder(path, where)
    elif file.suffix == ".onnx":
        backbone, notes = read_onnx(path, where)
        weights = ModelWeights(where, "ONNX file of dinov2-hf", backbone, notes.config, preprocessor=notes.preprocessor)
    else:
        weights = _read_file(file, where, network, num_attention_heads)
    if network == "student" and not weights.kind.startswith(_TRAINING_STATE):
        raise ValueError(f"{where} holds one network, not a student beside its teacher; leave --network out")
    if dtype is not None:
        weights.backbone = {key: tensor.to(dtype) for key, tensor in weights.backbone.items()}
    return weights


def kind_of_names(names: Iterable[str]) -> str | None:
    """Whose names these tensors bear: `interchange`, `original`, `timm`, `heads`; None for those of something else."""
    plain = {re.sub(r"^dinov2(_with_registers)?\.", "", without_wrappers(name)) for name in names}
    if "embeddings.patch_embeddings.projection.weight" in plain:
        return "interchange"
    if "patch_embed.proj.weight" in plain:
        original = "mask_token" in plain or "register_tokens" in plain
        return "original" if original or "cls_token" not in plain else "timm"
    return "heads" if plain and all(_HEAD.match(name) for name in plain) else None


def _read_folder(path: str, where: str) -> ModelWeights:
    """A model in a folder or on the Hub, and the heads that our exports have beside it."""
    try:
        model, report = Dinov2Model.from_pretrained(
            path,
            dtype="auto",
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
            f"that can be reached ({_first_line(error)})"
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"{where} cannot be read: {_first_line(error)}; give a DINOv2 model that transformers loads"
        ) from None
    # transformers fills what is missing with fresh weights, and leaves out what is too much
    odd = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    odd += [f"{name} has another shape" for name, *_ in sorted(report["mismatched_keys"])]
    too_much = sorted(report["unexpected_keys"])
    odd += [f"{name} has no place" for name in too_much if re.match(r"(embeddings|encoder|layernorm)\.", name)]
    if odd:
        raise ValueError(
            f"the weights at {where} do not fit the config.json beside them: {_summary(odd)}; "
            "fetch or export the model again"
        )
    remarks = [f"{_summary(too_much)} is left out: no part of the backbone"] if too_much else []
    kind = "folder" if Path(path).is_dir() else "model on the Hub"
    return ModelWeights(
        where,
        f"{kind} that transformers loads",
        model.state_dict(),
        model.config,
        tensors,
        preprocessor=settings,
        remarks=remarks,
    )


def _beside(path: str, name: str) -> Path | None:
    """A further file of a folder or a repository, where it has it."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except EntryNotFoundError:  # as most are published
        return None


def _read_file(file: Path, where: str, network: str, num_attention_heads: int | None) -> ModelWeights:
    """A backbone in one file, under whatever names."""
    state, metadata, kind = read_tensors(file, where, network)
    heads = {name: value for name, value in state.items() if _HEAD.match(name)}
    backbone = {name: value for name, value in state.items() if name not in heads}
    notes, names = Notes.unpack(metadata, where), kind_of_names(backbone)
    if names == "interchange" and file.name == "model.safetensors" and (file.parent / "config.json").is_file():
        return _read_folder(str(file.parent), where)
    if heads and not backbone:
        raise ValueError(f"{where} holds projection heads alone; give the folder, which has the backbone beside them")
    settings = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    remarks = []
    try:
        if names == "interchange":
            backbone = {re.sub(r"^dinov2(_with_registers)?\.", "", name): value for name, value in backbone.items()}
            remarks += _drop(backbone, "classifier.")
            original, config_of = to_original(backbone), config_from_original
            settings = {"interpolate_offset": 0.0, **settings}
        elif names == "timm":
            kind = kind or "file under timm's names"
            remarks += _drop(backbone, "head.")
            original, config_of = backbone, config_from_timm
            backbone = from_timm(original, notes.tensors)
            if "embeddings.mask_token" not in notes.tensors:
                remarks.append("the mask token is zero: timm's models have none")
        else:
            kind = kind or "file under the original names" + (", with heads" if heads else "")
            original, config_of = backbone, config_from_original
            backbone = from_original(original)
        config = notes.config or _config(original, config_of, settings)
    except KeyError as error:
        raise ValueError(f"{where} lacks {error} and is not a whole DINOv2 backbone; fetch it again") from None
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}") from None
    known = notes.config is not None or num_attention_heads is not None
    kind = kind or "file under the names of transformers, without its config.json"
    return ModelWeights(where, kind, backbone, config, heads, known, notes.preprocessor, remarks)


def _config(original: Mapping[str, Tensor], config_of, settings: Mapping[str, Any]) -> Dinov2Config:
    """The config that the shapes tell; where the width is no multiple of 64, of one attention head."""
    projection = original.get("patch_embed.proj.weight")
    if projection is not None and projection.shape[0] % 64:
        settings = {"num_attention_heads": 1, **settings}
    return config_of(original, **settings)


def read_tensors(file: Path, where: str, network: str = "teacher") -> tuple[dict[str, Tensor], dict[str, str], str]:
    """The tensors in a safetensors file or a pickle, which is not allowed to run code.

    Returns:
        the tensors, of a training state those of one network; the metadata; what the file is, where its wrapping tells.

    Raises:
        ValueError: a file that is damaged or holds other objects, a training state without that network.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}, ""
        except SafetensorError as error:
            raise ValueError(f"{where} cannot be read: {_first_line(error)}; fetch or export it again") from None
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
        raise ValueError(f"{where} holds a teacher alone; leave --network out")
    if network in networks:
        prefix = f"{network}."
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        state = inner or state[network]
    return _tensors(state), metadata, f"{_TRAINING_STATE} of the original code" if len(networks) == 2 else ""


def _tensors(state: Any) -> dict[str, Tensor]:
    items = state.items() if isinstance(state, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def _drop(state: dict[str, Tensor], prefix: str) -> list[str]:
    """Takes the tensors with a prefix out of `state`; what to say of it."""
    names = sorted(name for name in state if name.startswith(prefix))
    for name in names:
        del state[name]
    return [f"{_summary(names)} is left out: no part of the backbone"] if names else []


def _summary(items: list[str]) -> str:
    return items[0] + (f" (and {len(items) - 1} tensors more)" if len(items) > 1 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
