"""A frozen backbone out of whatever holds one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor

from ..backbones import StockBackbone, family_of_model_type, load_stock_backbone
from ..config import ColorsConfig, public_name
from ..data import EvalTransform
from ..weights.formats import default_preprocessor
from ..weights.source import open_source
from .extractor import FeatureExtractor

logger = logging.getLogger(__name__)


def open_backbone(
    path: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "--model",
    num_attention_heads: int | None = None,
) -> FeatureExtractor:
    """The backbone of a run, an export, a file of any format, or any vision transformer that `AutoModel` loads.

    Args:
        path: what is there tells by itself what it is.
        device, dtype: where and in what it computes.
        name: what messages call the path.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: what is there is damaged, or no vision transformer.
        ImportError: an ONNX file, and onnx is not installed.
    """
    if _is_other(path):
        where = f"{name}={path}"
        network = load_stock_backbone(path, where)
        return FeatureExtractor.of(network, _transform_of_other(path, network), _name_of(path), device, dtype)
    source = open_source(path, num_attention_heads=num_attention_heads, name=name)
    weights = source.weights
    if source.run is not None:
        transform = source.run.transform
    else:
        transform = EvalTransform.of_preprocessor(weights.preprocessor or default_preprocessor(weights.config))
    return FeatureExtractor.of(weights.build(), transform, _name_of(path), device, dtype)


def _name_of(path: str) -> str:
    """What tables call it: `vits14` for `runs/vits14` and for `runs/vits14/export`."""
    name = public_name(path)
    return f"{public_name(str(Path(path).parent))}" if name == "export" and Path(path).parent.name else name


def _is_other(path: str) -> bool:
    """Whether transformers says that no family of ours reads this model."""
    if Path(path).is_file() or (Path(path).is_dir() and not (Path(path) / "config.json").is_file()):
        return False
    try:
        model_type = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    except (OSError, ValueError):  # what is wrong is said when it is read
        return False
    return family_of_model_type(model_type) is None


def _transform_of_other(path: str, network: StockBackbone) -> EvalTransform:
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        return EvalTransform.of_preprocessor(processor.to_dict())
    except (OSError, ValueError):
        size = getattr(network.config, "image_size", 224)
        size = size if isinstance(size, int) else size[0]
        logger.warning(
            "%s has no preprocessor; its images are brought to %d pixels in the colours of ImageNet", path, size
        )
        return EvalTransform(size * 256 // 224, size, ColorsConfig().mean, ColorsConfig().std)
