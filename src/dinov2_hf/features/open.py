"""A frozen backbone out of whatever holds one."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import public_name
from ..weights import open_weights
from .extractor import FeatureExtractor


def open_backbone(
    path: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "--model",
    num_attention_heads: int | None = None,
) -> FeatureExtractor:
    """The backbone of a run, an export, a file of any format, or any vision model that `AutoModel` loads.

    Args:
        path: what is there shows by itself what it is.
        device: where it computes.
        dtype: what it computes in.
        name: what messages call the path.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: what is there is damaged, or not a model of single images.
        ImportError: an ONNX file, and onnx is not installed.
    """
    weights = open_weights(path, name, num_attention_heads=num_attention_heads)
    backbone = FeatureExtractor.of(weights.build(), weights.transform, _name_of(path), device, dtype)
    if digest := weights.fingerprint():
        backbone.fingerprint = lambda: f"{digest} {dtype}"
    return backbone


def _name_of(path: str) -> str:
    """What tables call it: `vits14` for `runs/vits14` and for `runs/vits14/export`."""
    name = public_name(path)
    return f"{public_name(str(Path(path).parent))}" if name == "export" and Path(path).parent.name else name
