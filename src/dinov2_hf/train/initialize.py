"""Starting from weights that exist: a run of ours, a released model, an export, an original checkpoint.

The short high-resolution stage (DINOv2, section 4, "Adapting the resolution") and continued pretraining begin here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import InitConfig
from ..models import HEADS_FILE, Dinov2Model, model_from_original, resize_position_embeddings
from ..ssl import DINOv2Pretraining
from .checkpoint import find_checkpoints, read_model_tensors

logger = logging.getLogger(__name__)


def initialize(model: DINOv2Pretraining, config: InitConfig) -> bool:
    """Loads the weights at `config.path` into student and teacher; position embeddings are resized.

    A run gives the student its student and the teacher its teacher; all else gives both the same.

    Returns:
        Whether heads stay untrained on a backbone that is not, so that they need a warm-up.

    Raises:
        FileNotFoundError: nothing at `config.path`.
        ValueError: another architecture than the config asks for, naming what to set.
    """
    path = Path(config.path)
    checkpoint = _checkpoint_at(path)
    if checkpoint is not None:
        tensors = read_model_tensors(checkpoint)
        roles = {role: _with_prefix(tensors, f"{role}.") for role in ("student", "teacher")}
        source = str(checkpoint)
    else:
        tensors = _read_model(config.path)
        roles = {"student": tensors, "teacher": tensors}
        source = config.path
    missing: set[str] = set()
    for role, found in roles.items():
        for name, network in getattr(model, role).items():
            state = _with_prefix(found, f"{name}.")
            if name == "backbone":
                _load(network, resize_position_embeddings(state, network.config), name, source)
            elif state and config.heads:
                _load(network, state, name, source)
            else:
                missing.add(name)  # student and teacher keep the heads they were built with, which are equal
    if checkpoint is not None and not missing:
        centers = _with_prefix(tensors, "centering.")
        if centers.keys() == model.centering.state_dict().keys():
            model.centering.load_state_dict(centers)
    anew = f"; {' and '.join(sorted(missing))} new" if missing else ""
    logger.info(
        "starting from %s: %s%s", source, "student and teacher" if checkpoint else "one backbone for both", anew
    )
    return bool(missing)


def _checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that `path` is, or the newest of the run that wrote into it."""
    if (path / ".metadata").is_file():
        return path
    found = find_checkpoints(path / "checkpoints")
    return found[-1] if found else None


def _read_model(path: str) -> dict[str, Tensor]:
    """Backbone and, where there are any, heads: `backbone.…`, `dino_head.…`, `ibot_head.…`."""
    if path.endswith((".pth", ".pt")):
        return _read_original(path)
    try:
        backbone = Dinov2Model.from_pretrained(path, dtype=torch.float32)
    except OSError as error:
        raise FileNotFoundError(
            f"init.path={path} is not a run, a folder with a model, an original .pth file, or a model on the Hub "
            f"that can be reached ({str(error).splitlines()[0]})"
        ) from None
    heads = Path(path) / HEADS_FILE
    if not Path(path).is_dir():
        try:
            heads = Path(hf_hub_download(path, HEADS_FILE))
        except EntryNotFoundError:  # published without heads, as most are
            pass
    tensors = load_file(heads) if heads.is_file() else {}
    return tensors | {f"backbone.{name}": value for name, value in backbone.state_dict().items()}


def _read_original(path: str) -> dict[str, Tensor]:
    """A released backbone, or a teacher of the original training code with its heads."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"init.path={path} does not exist")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("teacher", "model", "state_dict"):
        state = state.get(wrapper, state)
    heads = {name: value for name, value in state.items() if re.match(r"(dino|ibot)_head\.", name)}
    backbone = model_from_original({name: value for name, value in state.items() if name not in heads})
    return heads | {f"backbone.{name}": value for name, value in backbone.state_dict().items()}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load(network: nn.Module, state: Mapping[str, Tensor], name: str, source: str) -> None:
    """Loads `state`, and says what to set in the config where it does not fit."""
    wanted = network.state_dict()
    problems = [
        f"{key} is {_shape(state, key)} there and {_shape(wanted, key)} here"
        for key in sorted(wanted.keys() | state.keys())
        if _shape(wanted, key) != _shape(state, key)
    ]
    if problems:
        section = {"backbone": "model.preset, model.patch_size, model.num_register_tokens and model.use_swiglu_ffn"}
        sizes = "num_prototypes, hidden_dim, bottleneck_dim and num_layers"
        keys = section.get(name, f"{name.removesuffix('_head')}.{{{sizes}}} (or init.heads=false)")
        raise ValueError(
            f"the {name} at init.path={source} does not fit: {problems[0]}"
            + (f" ({len(problems) - 1} tensors more)" if len(problems) > 1 else "")
            + f"; set {keys} to those of the source"
        )
    network.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"
