"""Frozen features of a network, with what evaluation, pictures and curation need to know of it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones import Backbone, Features, Layers, features_of
from ..data.transform import EvalTransform

# where a model came from, and what is set for training
_NOT_OF_FEATURES: tuple[str, ...] = (
    *("_name_or_path", "architectures", "dtype", "drop_path_rate", "id2label", "label2id", "num_labels"),
    *("transformers_version", "layerscale_value", "initializer_range", "stage_names", "out_features"),
)


@dataclass
class FeatureExtractor:
    """Features of the last blocks of a network, with what has to be known to use them."""

    features: Layers
    """Without gradient, in float32; the last block last. Collective where the network is sharded. A further argument
    `final_norm=False` asks for features before the final norm, see `features_of`."""
    transform: EvalTransform
    """Of its preprocessor."""
    width: int
    """Channels of the features."""
    stride: int
    """Pixels between two neighbouring patches; the sides of images are multiples of it."""
    num_layers: int
    """Blocks whose features there are."""
    device: torch.device
    name: str = "model"
    """What tables and cards call it."""
    fingerprint: Callable[[], str] | None = None
    """Computes a digest of the weights, by which features are kept on disk; None: they are not kept."""
    module: Backbone | None = None
    """The network itself, for fine-tuning and attention maps; None where it is in a training run."""

    @classmethod
    def of(
        cls,
        module: Backbone,
        transform: EvalTransform,
        name: str = "model",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> FeatureExtractor:
        """The features of a backbone, which is moved to `device`, frozen, and computes in `dtype`."""
        module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)

        @torch.no_grad()
        def features(images: Tensor, layers: int = 1, final_norm: bool = True) -> list[Features]:
            found = features_of(module, images.to(device=device, dtype=dtype), layers, final_norm)
            return [Features(cls_.float(), patches.float()) for cls_, patches in found]

        return cls(
            features,
            transform,
            module.width,
            module.stride,
            len(module.blocks),
            torch.device(device),
            name,
            functools.cache(lambda: fingerprint_of(module)),  # reads every weight, so only where it is needed
            module,
        )


def fingerprint_of(module: Backbone) -> str:
    """A digest of the architecture and every weight, in the dtype that they are used in.

    Equal to that of release 0.5, so that features which it left on disk are found.
    """
    kind = type(getattr(module, "model", module)).__name__
    config = getattr(module, "config", None)
    settings = {} if config is None else config.to_dict()
    settings = {name: value for name, value in settings.items() if name not in _NOT_OF_FEATURES}
    settings |= getattr(module, "fingerprint_settings", {})
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True, default=str).encode())
    for name, tensor in module.state_dict().items():
        name = f"model.{name.removeprefix('model.')}"
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
