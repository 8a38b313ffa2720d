"""A model out of a run, or out of anything else that holds one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import RunConfig, load_saved_config
from ..data import EvalTransform, evaluation_transform
from ..files import CONFIG_FILE
from ..objectives import find_objective
from ..runs import RunFacts, RunFolder
from ..runs.checkpoint import checkpoint_at, read_state
from .folder import preprocessor_config
from .read import ModelWeights, read_weights
from .run import read_run

NETWORKS = ("teacher", "student")


@dataclass
class RunPart:
    """What a run tells besides its weights."""

    checkpoint: Path
    step: int
    """Updates made."""
    config: RunConfig
    transform: EvalTransform
    """Of its evaluation."""
    facts: RunFacts
    """Of this network at the checkpoint, for the model card."""


@dataclass
class OpenSource:
    """A backbone with its heads, and the run that they are out of, where they are."""

    weights: ModelWeights
    run: RunPart | None = None


def open_source(
    path: str,
    network: str = "teacher",
    student: str = "",
    num_attention_heads: int | None = None,
    device: str = "cpu",
    name: str = "SOURCE",
) -> OpenSource:
    """Reads whatever holds a model: a run, a checkpoint, a folder, a name on the Hub, an original, timm or ONNX file.

    Args:
        path: what is there tells by itself what it is.
        network: `teacher` (in a distillation the student's average) or `student`; of a run or a training state.
        student: name of a further student of a distillation.
        num_attention_heads: where nothing in a file tells.
        device: of the tensors of a run; `meta` reads their shapes and types alone.
        name: what messages call the path.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: what is there is damaged or no DINOv2 model, or has not the network asked for.
        ImportError: an ONNX file, and onnx is not installed.
    """
    checkpoint = checkpoint_at(Path(path))
    if checkpoint is not None:
        return _open_run(checkpoint, network, student, device, name)
    if student:
        raise ValueError(f"{name}={path} is not a run, so it has no students by name; leave --student out")
    return OpenSource(read_weights(path, name, network, num_attention_heads))


def _open_run(checkpoint: Path, network: str, student: str, device: str, name: str) -> OpenSource:
    source = read_run(checkpoint, student, device)
    config = load_saved_config(checkpoint / CONFIG_FILE)
    tensors = source.student if network == "student" else source.teacher
    architecture = source.config
    architecture._attn_implementation = "sdpa"
    if network == "teacher":
        architecture.drop_path_rate = 0.0  # as the run itself builds it
    parts = {"backbone": {}, "heads": {}}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        if first == "backbone":
            parts["backbone"][rest] = tensor
        elif first in ("dino_head", "ibot_head"):
            parts["heads"][key] = tensor
    transform = evaluation_transform(config)
    weights = ModelWeights(
        f"{name}={checkpoint}",
        f"checkpoint of a run, {find_objective(config).describe(config)}",
        parts["backbone"],
        architecture,
        parts["heads"],
        preprocessor=preprocessor_config(transform),
    )
    step = read_state(checkpoint)[0].step
    known = {} if network == "teacher" else {"results": []}  # averages alone are evaluated
    facts = RunFacts.of_run(RunFolder.of_checkpoint(checkpoint), config, student, until=step, **known)
    return OpenSource(weights, RunPart(checkpoint, step, config, transform, facts))


def dtype_of(weights: ModelWeights) -> torch.dtype:
    """Of most of the numbers of a backbone."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.backbone.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get)
