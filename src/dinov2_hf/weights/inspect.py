"""What a file or folder holds, as a table for people."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import describe_backbone
from ..objectives import find_objective
from ..runs import RunFacts, RunFolder
from ..runs.checkpoint import checkpoint_at, read_state
from ..runs.manifest import NAME, read_manifest
from ..runs.provenance import Provenance, describe_listing
from .base import Weights
from .formats import open_weights
from .tensors import TensorFile, tensors_of
from .wrappings import are_heads

_TENSOR_FILES = (".safetensors", ".pth", ".pt", ".bin")

Rows = list[tuple[str, str]]


def inspect_path(path: str) -> str:
    """A table: what kind of thing is at `path`, its architecture, heads and type, and what can be done with it.

    Of things that are no DINOv2 model it says so, and what they are as far as that can be told.

    Raises:
        FileNotFoundError: nothing there, nor a model of that name on the Hub.
        ImportError: an ONNX file, and onnx is not installed.
    """
    try:
        weights = open_weights(path, "PATH", device="meta")
        backbone, heads = weights.backbone(), weights.heads()
    except (ValueError, FileNotFoundError) as error:
        if not Path(path).exists():
            raise
        return _table(path, _describe_unknown(Path(path), str(error)))
    rows = [("what", weights.kind)]
    if weights.run is not None:
        rows += _describe_run(Path(path), weights)
    rows += _describe_backbone(weights, backbone)
    rows += _describe_heads(heads) or [("heads", "none")]
    rows += [("note", remark) for remark in weights.remarks]
    return _table(path, [*rows, ("use", _use(path, weights))])


def _describe_run(path: Path, weights: Weights) -> Rows:
    run, config, checkpoint, step = weights.run, weights.run_config, weights.checkpoint, weights.step
    assert run is not None and config is not None and checkpoint is not None
    train = config.train
    rows = [("checkpoint", f"{checkpoint.name}, epoch {step / train.epoch_length:.4g} of {train.epochs:g}")]
    rows += [("updates", f"{step:,} of {train.num_steps:,}")]
    rows += _describe_provenance(checkpoint)
    if path.resolve() != checkpoint.resolve():
        rows.append(("all checkpoints", ", ".join(found.name for found in RunFolder(path).find_checkpoints())))
    losses = next((line for line in reversed(run.read_metrics(step)) if "loss" in line), None)
    if losses:
        names = {name.removeprefix("loss/"): value for name, value in losses.items() if name.startswith("loss")}
        terms = [f"{name} {value:.4g}" for name, value in names.items() if value is not None]
        rows.append(("losses", f"{', '.join(terms)} (mean up to update {losses['step']:,})"))
    results = RunFacts.of_run(run, config, until=step).results_table()
    rows += [("result", f"{name}: {value}") for name, value in results.items()]
    if further := [name for name in config.models if name]:
        rows.append(("further students", f"{', '.join(further)} (--student NAME)"))
    return rows


def _describe_provenance(checkpoint: Path) -> Rows:
    """What a checkpoint records of its files, weights, data, code and environment."""
    listing = read_state(checkpoint)[0].listing or {}
    data = "; ".join(f"{name}: {describe_listing(source)}" for name, source in listing.items())
    try:
        files, origin = read_manifest(checkpoint), Provenance.read(checkpoint)
    except FileNotFoundError:
        return [("files", "without checksums: from dinov2_hf 0.5")]
    size = sum(entry.size for entry in files.values()) / 1e6
    return [
        (
            "files",
            f"{len(files)}, {size:,.1f} MB, of the sizes in {NAME}; contents are compared where weights are read",
        ),
        ("weights", f"SHA-256 {origin.weights}"),
        ("data", data or "not recorded"),
        ("code", ", ".join(f"{name} {value}" for name, value in origin.code.items())),
        ("environment", ", ".join(f"{name} {value}" for name, value in origin.environment.items())),
    ]


def _describe_backbone(weights: Weights, backbone: Mapping[str, Tensor]) -> Rows:
    rows = describe_backbone(weights.skeleton()).table
    if not weights.knows_num_attention_heads:
        rows["attention heads"] = "not in the file: heads of 64 channels are assumed"
    return [
        *rows.items(),
        ("parameters", _millions(backbone.values())),
        ("dtype", str(_dtype_of(backbone)).removeprefix("torch.")),
    ]


def _describe_heads(heads: Mapping[str, Mapping[str, Tensor]]) -> Rows:
    rows = []
    for name, state in heads.items():
        layers = {
            int(m[1]): value
            for key, value in state.items()
            if value.ndim == 2 and (m := re.fullmatch(r"mlp\.(\d+)\.weight", key))
        }
        directions, of_patches = (state.get(f"{layer}.weight_v") for layer in ("last_layer", "last_layer2"))
        prototypes = any(key.startswith("last_layer") for key in state)
        if not layers or (prototypes and directions is None):
            rows.append((name, f"not whole: {', '.join(sorted(state))}"))
            continue
        widths = [layers[min(layers)].shape[1], *(layers[index].shape[0] for index in sorted(layers))]
        text = "no prototypes" if directions is None else f"K = {directions.shape[0]:,} prototypes"
        text += f", widths {' -> '.join(map(str, widths))}"
        if of_patches is not None:
            text += f", {of_patches.shape[0]:,} prototypes of patches"
        if any(key.endswith("running_mean") for key in state):
            text += ", batch norm"
        rows.append((name, f"{text}, {_millions(state.values())}"))
    return rows


def _describe_unknown(path: Path, reason: str) -> Rows:
    """What can be said of what is not a model."""
    if checkpoint_at(path):
        return [("what", "a checkpoint that cannot be read"), ("why", reason), ("use", "no command reads it")]
    if path.is_file() and path.suffix in _TENSOR_FILES:
        try:
            tensors = TensorFile.read(path, str(path)).tensors
        except ValueError as error:
            return [("what", "a file that cannot be read"), ("why", str(error))]
        if are_heads(tensors):
            heads = {
                name: tensors_of(tensors, f"{name}.") for name in sorted({key.partition(".")[0] for key in tensors})
            }
            use = "no command reads them by themselves; give the folder, which has the backbone beside them"
            return [("what", "projection heads of a DINOv2 model"), *_describe_heads(heads), ("use", use)]
        shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
        more = ", …" if len(tensors) > 3 else ""
        rows = [("what", "tensors, not those of a whole DINOv2 backbone")]
        rows.append(("tensors", f"{len(tensors)}: {shown}{more}"))
    else:
        rows = [("what", "nothing that dinov2-hf knows")]
    return [*rows, ("why", reason), ("use", "no command reads it")]


def _dtype_of(backbone: Mapping[str, Tensor]) -> torch.dtype:
    """Of most of the numbers of a backbone."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in backbone.values():
        counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def _use(path: str, weights: Weights) -> str:
    start = f"init.path={path} starts training from it"
    if weights.run is None or weights.run_config is None:
        return f"dinov2-hf export {path} OUTPUT writes it in another format; {start}"
    script = "distill.py" if find_objective(weights.run_config).teachers_of(weights.run_config) else "pretrain.py"
    config = weights.run.config_file
    return (
        f"dinov2-hf export {path} OUTPUT writes the model; "
        f"accelerate launch examples/{script} --config {config} goes on; {start}"
    )


def _millions(tensors: Iterable[Tensor]) -> str:
    return f"{sum(math.prod(tensor.shape) for tensor in tensors) / 1e6:,.2f} M"


def _table(path: str, rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([path, *(f"  {name:<{width}}  {value}" for name, value in rows)])
