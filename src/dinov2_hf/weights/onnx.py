"""To ONNX and back: one graph for every batch, height and width, weights under the names of the interchange format.

onnx, onnxscript and onnxruntime are an extra: `pip install "dinov2_hf[onnx]"`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.resnet.modeling import ResNetModel
from ..backbones.transformer.model import VisionTransformer
from ..config.limits import check_size
from ..files import first_line
from .base import Format, Place, Weights, class_of
from .names import MASK_TOKEN, NAMES
from .notes import Notes
from .positions import bicubic_matrix
from .tensors import PARTS

OPSET = 20
INPUT, OUTPUTS = "pixel_values", ("last_hidden_state", "pooler_output")


class OnnxBackbone(nn.Module):
    """The forward of a vision transformer without branches on the size of the images, which an exporter would freeze.

    Takes `pixel_values` `[B, C, H, W]`, gives `last_hidden_state` `[B, 1 + R + N, D]` and `pooler_output` `[B, D]`. Its
    parameters are those of the model, under the same names.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.config = model.config
        self.embeddings, self.encoder, self.layernorm = model.embeddings, model.encoder, model.layernorm

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.embeddings
        patches = embeddings.patch_embeddings.projection(pixel_values)
        batch, _, rows, columns = patches.shape
        positions = embeddings.position_embeddings
        patches = patches.flatten(2).transpose(1, 2) + self._positions(positions[0, 1:], rows, columns)
        prefix = embeddings.cls_token + positions[:, :1]
        if embeddings.register_tokens is not None:
            prefix = torch.cat((prefix, embeddings.register_tokens), dim=1)
        encoded = self.encoder(torch.cat((prefix.expand(batch, -1, -1), patches), dim=1))
        tokens = self.layernorm(encoded.last_hidden_state)
        return tokens, tokens[:, 0]

    def _positions(self, positions: Tensor, rows: int, columns: int) -> Tensor:
        """Position embeddings `[N, D]` of the config's grid on another: `[rows * columns, D]`, by the config's rule."""
        config = self.config
        sizes = [torch.full((), size, dtype=torch.float32) for size in (rows, columns)]
        native = (sizes[0] == config.grid_size[0]) & (sizes[1] == config.grid_size[1])
        offset = torch.where(native, 0.0, config.interpolate_offset)  # at its own size nothing is resampled
        of_rows, of_columns = (
            bicubic_matrix(new, old, old / (size + offset), config.interpolate_antialias)
            for new, old, size in zip((rows, columns), config.grid_size, sizes)
        )
        grid = positions.unflatten(0, config.grid_size)
        return torch.einsum("ir,rcd,jc->ijd", of_rows, grid, of_columns).flatten(0, 1)


class OnnxResNet(nn.Module):
    """The forward of a `ResNetModel`: the last map `[B, D, h, w]` and its mean `[B, D]`, `pooler_output`."""

    def __init__(self, model: ResNetModel) -> None:
        super().__init__()
        self.embedder, self.encoder = model.embedder, model.encoder

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        maps: Tensor = self.embedder(pixel_values)
        for stage in self.encoder.stages:
            maps = stage(maps)
        return maps, maps.mean(dim=(2, 3))


def write_onnx(
    path: str | PathLike[str],
    model: VisionTransformer | ResNetModel,
    preprocessor: dict[str, Any] | None = None,
    weights_beside: bool | None = None,
) -> None:
    """Writes an ONNX file in float32.

    Args:
        path: the file.
        model: on any device, in any dtype.
        preprocessor: configuration of the image processor, for the metadata.
        weights_beside: keep the weights in a second file, `<path>.data`; default: for models of more than 2 GB alone,
            which is as much as an ONNX file can hold.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    _require("onnx")
    _require("onnxscript")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        copied: nn.Module = copy.deepcopy(model)
        model = cast(VisionTransformer | ResNetModel, copied.to("cpu", torch.float32))
    config, state = model.config, model.state_dict()
    graph: nn.Module
    if isinstance(model, ResNetModel):
        graph, patch = OnnxResNet(model), (model.stride, model.stride)
    else:
        graph, patch = OnnxBackbone(model), model.config.patch_height_width
    example = torch.zeros(2, config.num_channels, 3 * patch[0], 5 * patch[1])
    dynamic = torch.export.Dim.DYNAMIC
    with _for_export(model), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            optimize=False,  # it would fold and share weights; runtimes do that when they load
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: dynamic, 2: dynamic, 3: dynamic}},
            verbose=False,
        )
    assert program is not None  # as with dynamo=True
    missing = state.keys() - program.model.graph.initializers.keys()
    renamed = {name for name in missing if name != MASK_TOKEN and not name.endswith("num_batches_tracked")}
    assert not renamed, f"the exporter renamed {sorted(renamed)}"  # those two are no part of the graph
    parts: tuple[Any, ...] = (program.model, program.model.graph, *program.model.graph.all_nodes())
    for item in parts:
        item.metadata_props.clear()  # where in which source file an operation was made: paths of this machine
    notes = Notes(config, preprocessor, {name: state[name] for name in missing})
    program.model.metadata_props.update(notes.pack())
    program.save(path, external_data=weights_beside)


def read_onnx(path: str | PathLike[str], where: str) -> tuple[dict[str, Tensor], Notes]:
    """The backbone's state dict in an ONNX file that `write_onnx` wrote, and its notes.

    Args:
        path: the file; where the weights are in a second one, it lies beside it.
        where: what messages call the file.

    Raises:
        ImportError: onnx is not installed.
        ValueError: no ONNX file, or one of others, which do not keep names and configuration.
    """
    onnx = _require("onnx")
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ValueError(f"{where} is damaged or not an ONNX file: {first_line(error)}; export it again") from None
    notes = Notes.unpack({entry.key: entry.value for entry in proto.metadata_props}, where)
    if notes.config is None:
        raise ValueError(
            f"{where} has no config.json in its metadata, so that dinov2-hf did not write it; "
            "import from what it was exported from"
        )
    parts = [part for part in (Path(path), Path(f"{path}.data")) if part.is_file()]
    size, state = sum(part.stat().st_size for part in parts), {}
    for tensor in proto.graph.initializer:
        if tensor.name.startswith((*PARTS, "embedder.")):
            itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            check_size(tensor.name, math.prod(tensor.dims) * itemsize, size, where)
            state[tensor.name] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    return state | notes.tensors, notes


def onnx_usage(path: str, config: Any) -> str:
    """Python that runs such a file."""
    return (
        f'session = onnxruntime.InferenceSession("{path}")\n'
        f'last_hidden_state, pooler_output = session.run(None, {{"{INPUT}": images}})'
        f"  # float32, [batch, {config.num_channels}, height, width]"
    )


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f'ONNX needs the package {name}; pip install "dinov2_hf[onnx]"') from None


@contextlib.contextmanager
def _for_export(model: VisionTransformer | ResNetModel) -> Iterator[None]:
    """Attention that the exporter knows, and no messages of it about what does not matter here."""
    attention, training = model.config._attn_implementation, model.training
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    model.config._attn_implementation = "sdpa"
    model.eval()
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        model.config._attn_implementation = attention
        model.train(training)
        logger.setLevel(level)


def read_onnx_weights(place: Place) -> Weights:
    """Reads an ONNX file that `write_onnx` wrote."""
    backbone, notes = read_onnx(place.path, place.where)
    assert notes.config is not None, place.where
    tensors = {f"backbone.{name}": value for name, value in backbone.items()}
    return Weights(
        place.where,
        "ONNX file of dinov2-hf",
        notes.config,
        lambda _: tensors,
        place.network,
        preprocessor=notes.preprocessor,
        make=class_of(notes.config),
    )


FORMAT = Format(
    holds=lambda place: place.is_file and place.path.endswith(".onnx"),
    read=read_onnx_weights,
    write=write_onnx,
    suffix=".onnx",
    families=(*NAMES, "resnet"),
    usage=onnx_usage,
)
