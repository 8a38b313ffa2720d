"""Starting from weights that exist: a run of ours, a released model, an export, an original checkpoint.

The short high-resolution stage (DINOv2, section 4, "Adapting the resolution") and continued pretraining begin here.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import InitConfig, load_saved_config
from ..models import HEADS_FILE, Dinov2Config, Dinov2Model, resize_position_embeddings
from ..models.convert import config_from_original, from_original
from ..ssl import Students
from .checkpoint import find_checkpoints, read_model_tensors

logger = logging.getLogger(__name__)


@dataclass
class Source:
    """Weights to start from: `backbone.…` and, where there are any, `dino_head.…` and `ibot_head.…`."""

    name: str
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    config: Dinov2Config
    """Of the backbone."""
    num_attention_heads: int | None
    """None where nothing tells."""
    centering: Mapping[str, Tensor] = field(default_factory=dict)


def read_source(path: str) -> Source:
    """The weights at `path`: a run or one of its checkpoints, a model that transformers loads, an original `.pth`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is damaged, or not of a DINOv2 model.
    """
    checkpoint = _checkpoint_at(Path(path))
    if checkpoint is not None:
        return _read_run(checkpoint)
    return _read_original(path) if path.endswith((".pth", ".pt")) else _read_model(path)


def initialize(model: Students, config: InitConfig) -> bool:
    """Loads the weights at `config.path` into the (first) student and its average; position embeddings are resized.

    A run gives the student its student and the teacher its teacher; all else gives both the same.

    Returns:
        Whether heads stay untrained on a backbone that is not, so that they need a warm-up.

    Raises:
        FileNotFoundError: nothing at `config.path`.
        ValueError: another architecture than the config asks for, naming what to set; a file that is damaged, or not
            of a DINOv2 model.
    """
    source = read_source(config.path)
    missing: set[str] = set()
    for networks, tensors in ((model.students[""], source.student), (model.averages[""], source.teacher)):
        for name, network in networks.items():
            state = _with_prefix(tensors, f"{name}.")
            if name == "backbone":
                _load_backbone(network, state, source)
            elif state and config.heads:
                _load(network, state, name, source.name)
            else:
                missing.add(name)  # student and teacher keep the heads they were built with, which are equal
    if not missing and source.centering and source.centering.keys() == model.centering.state_dict().keys():
        model.centering.load_state_dict(source.centering)
    anew = f"; {' and '.join(sorted(missing))} new" if missing else ""
    logger.info(
        "starting from %s: %s%s",
        source.name,
        "one backbone for both" if source.student is source.teacher else "student and teacher",
        anew,
    )
    return bool(missing)


def _checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that `path` is, or the newest of the run that wrote into it."""
    if (path / ".metadata").is_file():
        return path
    found = find_checkpoints(path / "checkpoints")
    return found[-1] if found else None


def _read_run(checkpoint: Path) -> Source:
    run = load_saved_config(checkpoint / "config.yaml")
    architecture = run.model.architecture() | {"image_size": run.crops.global_size}
    config = Dinov2Config.preset(run.model.preset, **architecture)
    tensors = read_model_tensors(checkpoint)
    return Source(
        str(checkpoint),
        _with_prefix(tensors, "student."),
        _with_prefix(tensors, "teacher.") or _with_prefix(tensors, "average."),
        config,
        config.num_attention_heads,
        _with_prefix(tensors, "centering."),
    )


def _read_model(path: str) -> Source:
    """A model in a folder or on the Hub, and the heads that our exports have beside it."""
    try:
        backbone, report = Dinov2Model.from_pretrained(
            path,
            dtype=torch.float32,
            key_mapping={r"^dinov2_with_registers\.": ""},  # of a classifier; without registers transformers does it
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
        heads = Path(path) / HEADS_FILE
        if not Path(path).is_dir():
            try:
                heads = Path(hf_hub_download(path, HEADS_FILE))
            except EntryNotFoundError:  # published without heads, as most are
                pass
        tensors = load_file(heads) if heads.is_file() else {}
    except OSError as error:
        raise FileNotFoundError(
            f"init.path={path} is not a run, a folder with a model, an original .pth file, or a model on the Hub "
            f"that can be reached ({_first_line(error)})"
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"init.path={path} cannot be read: {_first_line(error)}; give a DINOv2 model that transformers loads"
        ) from None
    # transformers fills what is missing with fresh weights, and leaves out what is too much
    odd = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    odd += [f"{name} has another shape" for name, *_ in sorted(report["mismatched_keys"])]
    too_much = (name for name in report["unexpected_keys"] if re.match(r"(embeddings|encoder|layernorm)\.", name))
    odd += [f"{name} has no place" for name in sorted(too_much)]
    if odd:
        raise ValueError(
            f"the weights at init.path={path} do not fit the config.json beside them: {_summary(odd)}; "
            "fetch or export the model again"
        )
    tensors |= {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    return Source(path, tensors, tensors, backbone.config, backbone.config.num_attention_heads)


def _read_original(path: str) -> Source:
    """A released backbone, or a teacher of the original training code with its heads."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"init.path={path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise ValueError(
            f"init.path={path} is damaged or holds other objects than tensors, which are not loaded as they can run "
            "code; save the state dict alone with torch.save, where you trust the file"
        ) from None
    for wrapper in ("teacher", "model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, Mapping) else {}
    state = _with_prefix(state, "teacher.") or state  # where the student is beside it
    heads = {name: value for name, value in state.items() if re.match(r"(dino|ibot)_head\.", name)}
    original = {name: value for name, value in state.items() if name not in heads}
    try:
        config = config_from_original(original, num_attention_heads=1)
    except KeyError as error:
        raise ValueError(f"init.path={path} lacks {error} and is not a whole DINOv2 backbone; fetch it again") from None
    except ValueError as error:
        raise ValueError(f"init.path={path} cannot be read: {error}") from None
    tensors = heads | {f"backbone.{name}": value for name, value in from_original(original).items()}
    return Source(path, tensors, tensors, config, None)


def _load_backbone(network: Dinov2Model, state: Mapping[str, Tensor], source: Source) -> None:
    try:
        state = resize_position_embeddings(state, network.config, source.config)
    except ValueError as error:
        raise ValueError(f"init.path={source.name}: {error}") from None
    _load(network, state, "backbone", source.name)
    there, here = source.num_attention_heads, network.config.num_attention_heads
    if there is not None and there != here:  # leaves no trace in the shapes
        raise ValueError(
            f"the backbone at init.path={source.name} has {there} attention heads and here it would have {here}; "
            f"set model.num_attention_heads={there}"
        )


def _load(network: nn.Module, state: Mapping[str, Tensor], name: str, source: str) -> None:
    """Loads `state`, and says what to set in the config where it does not fit."""
    wanted = network.state_dict()
    problems = [
        f"{key} is {_shape(state, key)} there and {_shape(wanted, key)} here"
        for key in sorted(wanted.keys() | state.keys())
        if _shape(wanted, key) != _shape(state, key)
    ]
    if problems:
        if name == "backbone":
            keys = "preset", "hidden_size", "num_hidden_layers", "patch_size", "num_register_tokens", "use_swiglu_ffn"
            section, otherwise = "model", ""
        else:
            keys = "num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers"
            section, otherwise = name.removesuffix("_head"), ", or init.heads=false"
        raise ValueError(
            f"the {name} at init.path={source} does not fit: {_summary(problems)}; "
            f"set {', '.join(f'{section}.{key}' for key in keys)} as the source has them{otherwise}"
        )
    network.load_state_dict(state)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"


def _summary(items: list[str]) -> str:
    return items[0] + (f" (and {len(items) - 1} tensors more)" if len(items) > 1 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
