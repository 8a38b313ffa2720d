"""From any source to any format."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..backbones import Dinov2Config, Dinov2Model
from ..files import Output, check_outputs, made_nothing
from ..objectives import DINOHead, tensors_of
from .folder import export_folder
from .formats import (
    FILES,
    can_run_in_transformers,
    default_preprocessor,
    export_converted_folder,
    export_file,
    folder_usage,
    written_beside,
)
from .positions import resize_position_embeddings
from .read import ModelWeights
from .source import OpenSource, open_source

FORMATS = ("hf", *FILES)


@dataclass
class Exported:
    """What was written, and what to know of it."""

    output: Path
    kind: str
    """What the source was."""
    usage: str
    """Python that loads it."""
    remarks: list[str] = field(default_factory=list)
    """What was left out or assumed."""


def export_source(
    path: str,
    output: Path,
    format: str = "hf",
    network: str = "teacher",
    student: str = "",
    num_attention_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Exported:
    """Writes the model at `path` to `output`, in another format or the same.

    Args:
        path, network, student, num_attention_heads: see `open_source`.
        output: a folder for `hf`, else a file; nothing may be there.
        format: `hf`, `original`, `timm` or `onnx`.
        image_size: resample the position embeddings to this height and width first, by the rule of the source: at this
            size whatever reads the export gives the features of the source.

    Raises:
        FileNotFoundError, ValueError, ImportError: what a user can mend; nothing is written then.
    """
    if format == "hf" and output.suffix in {kind.suffix for kind in FILES.values()}:
        raise ValueError(f"OUTPUT={output} looks like a file, and the format hf is a folder; leave {output.suffix} out")
    check_outputs([Output("OUTPUT", place, made_nothing) for place in (output, Path(f"{output}.data"))])
    source = open_source(path, network, student, num_attention_heads)
    weights = source.weights
    _require_num_attention_heads(weights)
    if image_size is not None:
        _resize(weights, image_size)
    backbone, remarks = weights.build(), list(weights.remarks)
    preprocessor = weights.preprocessor
    if preprocessor is None:
        preprocessor = default_preprocessor(weights.config)
        colors = "normalised as ImageNet's" if weights.config.num_channels == 3 else "not normalised"
        remarks.append(f"the source does not tell how images are prepared: {colors}; see preprocessor_config.json")
    remarks += _rule_remarks(weights.config, format)
    if format == "hf":
        _export_folder(source, output, backbone, preprocessor, path, remarks)
        usage = folder_usage(str(output), weights.config)
    else:
        if weights.heads:
            remarks.append(f"the heads are left out: {format} has no place for them, --format hf has")
        export_file(output, format, backbone, preprocessor)
        usage = FILES[format].usage(str(output), weights.config)
    return Exported(output, weights.kind, usage, remarks)


def _export_folder(
    source: OpenSource, output: Path, backbone: Dinov2Model, preprocessor: dict, path: str, remarks: list[str]
) -> None:
    weights, run = source.weights, source.run
    if run is not None:
        heads: dict[str, nn.Module] = {
            name: DINOHead.from_state(tensors_of(weights.heads, f"{name}."))
            for name in sorted({key.partition(".")[0] for key in weights.heads})
        }
        with written_beside(output) as folder:
            export_folder(folder, backbone, heads, run.transform, run.config, run.facts)
    else:
        name = path if weights.kind.startswith("model on the Hub") else Path(path).name  # no paths of this machine
        origin = f"`{name}` ({weights.kind})"
        export_converted_folder(output, backbone, weights.heads, preprocessor, origin, remarks)


def _resize(weights: ModelWeights, image_size: tuple[int, int]) -> None:
    config = copy.deepcopy(weights.config)
    height, width = image_size
    config.grid_of(height, width)
    config.image_size = height if height == width else [height, width]
    weights.backbone = resize_position_embeddings(weights.backbone, config, weights.config)
    weights.config = config


def _require_num_attention_heads(weights: ModelWeights) -> None:
    width = weights.config.hidden_size
    if not weights.knows_num_attention_heads and width % 64:
        raise ValueError(
            f"{weights.where} does not tell its number of attention heads, and its width {width} is not a multiple of "
            "the usual 64 channels; give --num-attention-heads"
        )


def _rule_remarks(config: Dinov2Config, format: str) -> list[str]:
    """What to say where a format's readers interpolate position embeddings by another rule than the model."""
    if format == "hf" and not can_run_in_transformers(config):
        return ["transformers takes square images of position embeddings alone; load the folder with dinov2_hf"]
    rule = config.interpolate_antialias, config.interpolate_offset
    readers = {"hf": ("transformers", (config.num_register_tokens > 0, 0.0)), "timm": ("timm", (True, 0.0))}
    name, theirs = readers.get(format, ("", rule))
    if rule == theirs:
        return []
    rows, columns = (count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    return [
        f"{name} interpolates position embeddings by another rule than this model: its features are the same at "
        f"{rows} x {columns} pixels alone; --image-size chooses another size"
    ]
