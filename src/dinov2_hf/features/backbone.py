"""A frozen backbone as evaluation, pictures and curation ask it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones import VisionTransformer
from ..data.transform import EvalTransform

Layers = Callable[[Tensor, int], list[tuple[Tensor, Tensor]]]
"""Normalised images `[B, C, H, W]` and a number of blocks to CLS `[B, D]` and patches `[B, D, h, w]` of the last."""

# where a model came from, and what is set for training
_NOT_OF_FEATURES = ("_name_or_path", "architectures", "dtype", "drop_path_rate", "id2label", "label2id", "num_labels")
_NOT_OF_FEATURES += ("transformers_version", "layerscale_value", "initializer_range", "stage_names", "out_features")


@dataclass
class Backbone:
    """Features of the last blocks of a network, with what has to be known to use them."""

    layers: Layers
    """Without gradient, in float32; the last block last. Collective where the network is sharded."""
    transform: EvalTransform
    """Of its preprocessor."""
    hidden_size: int
    patch_size: int
    num_layers: int
    device: torch.device
    name: str = "model"
    """What tables and cards call it."""
    fingerprint: Callable[[], str] | None = None
    """Computes a digest of the weights, by which features are kept on disk; None: they are not kept."""
    module: VisionTransformer | None = None
    """The network itself, for fine-tuning and attention maps; None where it is in a training run."""

    @classmethod
    def of(
        cls,
        module: VisionTransformer,
        transform: EvalTransform,
        name: str = "model",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Backbone:
        """A network by itself, moved to `device` and computing in `dtype`."""
        module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)

        @torch.no_grad()
        def layers(images: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
            return [(cls_.float(), patches.float()) for cls_, patches in module(images.to(device), count)]

        return cls(
            layers,
            transform,
            module.hidden_size,
            module.patch_size,
            module.num_layers,
            torch.device(device),
            name,
            functools.cache(lambda: fingerprint_of(module)),  # reads every weight, so only where it is needed
            module,
        )


def fingerprint_of(module: VisionTransformer) -> str:
    """A digest of the architecture and every weight, in the dtype that they are used in."""
    settings = {name: value for name, value in module.config.to_dict().items() if name not in _NOT_OF_FEATURES}
    digest = hashlib.sha256(json.dumps([type(module.model).__name__, settings], sort_keys=True, default=str).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
