"""Writing a model in any format, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from ..backbones import Dinov2Config, Dinov2Model
from ..config import ColorsConfig
from ..data import EvalTransform, preprocessor_config
from .folder import write_model
from .onnx import onnx_usage, write_onnx
from .original import original_usage, write_original
from .timm import timm_usage, write_timm


@dataclass(frozen=True)
class Format:
    """A way to write a backbone to one file."""

    suffix: str
    write: Callable[[Path, Dinov2Model, Mapping[str, Any]], None]
    usage: Callable[[str, Dinov2Config], str]
    """Python that loads the file at a path."""


FILES = {
    "original": Format(".pth", write_original, original_usage),
    "timm": Format(".safetensors", write_timm, timm_usage),
    "onnx": Format(".onnx", write_onnx, onnx_usage),
}
"""Formats of one file; the other one, `hf`, is a folder."""


def folder_usage(path: str, config: Dinov2Config) -> str:
    """Python that loads an exported folder."""
    loader = "transformers.AutoModel" if can_run_in_transformers(config) else "dinov2_hf.Dinov2Model"
    return f'model = {loader}.from_pretrained("{path}")'


def can_run_in_transformers(config: Dinov2Config) -> bool:
    """Whether the stock class, which takes every grid of position embeddings for a square, can run the model."""
    return config.grid_size[0] == config.grid_size[1]


def export_file(output: Path, format: str, backbone: Dinov2Model, preprocessor: Mapping[str, Any]) -> Path:
    """Writes a backbone in one of `FILES`.

    Args:
        output: the file, with the suffix of the format; nothing may be there.
        format: a key of `FILES`.
        backbone: on any device, in any dtype.
        preprocessor: configuration of the image processor, which the file's metadata keeps.

    Raises:
        ValueError: another suffix, something is there already, or an architecture that the format cannot express.
        ImportError: packages that ONNX needs are missing.
    """
    suffix = FILES[format].suffix
    if output.suffix != suffix:
        raise ValueError(f"OUTPUT={output} does not end in {suffix}, as files of the format {format} do; add it")
    with written_beside(output) as path:
        FILES[format].write(path, backbone, dict(preprocessor))
    return output


def export_converted_folder(
    output: Path,
    backbone: Dinov2Model,
    heads: Mapping[str, Tensor],
    preprocessor: Mapping[str, Any],
    origin: str,
    remarks: list[str],
) -> Path:
    """Writes a model that is not out of a run in the interchange format; `export_folder` does it for runs.

    Args:
        output: the folder; nothing may be there.
        backbone: to `model.safetensors` and `config.json`.
        heads: `dino_head.…` and `ibot_head.…`, to `heads.safetensors`; may be empty.
        preprocessor: to `preprocessor_config.json`.
        origin: where it comes from, for the model card `README.md`.
        remarks: what else a reader of the card has to know.

    Raises:
        ValueError: something is there already.
    """
    with written_beside(output) as folder:
        write_model(folder, backbone, heads, preprocessor)
        data = ModelCardData(
            library_name="transformers", pipeline_tag="image-feature-extraction", tags=["dinov2", "dinov2_hf"]
        )
        ModelCard.from_template(
            data,
            template_str=resources.files("dinov2_hf.model_cards").joinpath("converted.md").read_text(),
            architecture=backbone.config,
            num_parameters=f"{backbone.num_parameters() / 1e6:.1f} M",
            preprocessor=preprocessor,
            has_heads=bool(heads),
            origin=origin,
            remarks=remarks,
        ).save(folder / "README.md")
    return output


def default_preprocessor(config: Dinov2Config) -> dict[str, Any]:
    """What the released models are used with, where a source tells nothing: crops of 224 pixels, ImageNet's colours.

    Models of smaller images get crops of their size; other channels than three are not normalised.
    """
    native = min(count * patch for count, patch in zip(config.grid_size, config.patch_height_width))
    fits = native >= 224 and not any(224 % patch for patch in config.patch_height_width)
    side, channels = 224 if fits else native, config.num_channels
    mean = ColorsConfig().mean if channels == 3 else [0.0] * channels
    std = ColorsConfig().std if channels == 3 else [1.0] * channels
    return preprocessor_config(EvalTransform(side * 256 // 224, side, mean, std))


@contextlib.contextmanager
def written_beside(output: Path) -> Iterator[Path]:
    """A path to write to, of the same name in a folder beside `output`; moved there at the end, or removed.

    Files that belong to it, such as `<name>.data`, are moved first.

    Raises:
        ValueError: something is at `output` already.
    """
    if output.exists() or Path(f"{output}.data").exists():
        raise ValueError(f"OUTPUT={output} exists already; give another name or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield folder / output.name
        for path in sorted(folder.iterdir(), reverse=True):  # longer names first
            path.rename(output.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
