"""The projection head between backbone and prototypes (DINO paper, section 3.1; DINOv2 Appendix B)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class PrototypeLayer(nn.Module):
    """Weight-normalised linear layer without bias: logits are scaled cosines when the input has unit length.

    `weight_v` `[K, d]` holds the directions and `weight_g` `[K, 1]` the lengths, as the published heads name them.
    """

    def __init__(self, bottleneck_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        bound = bottleneck_dim**-0.5
        nn.init.uniform_(self.weight_v, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """The prototypes `[K, d]`, float32."""
        return torch._weight_norm(self.weight_v.float(), self.weight_g.float(), 0)


class Projected(NamedTuple):
    """What a head makes of features: they are compared with prototypes a few rows at a time, or all at once."""

    features: Tensor
    """`[M, d]`, of unit length."""
    prototypes: Tensor
    """`[K, d]`, float32."""

    @property
    def logits(self) -> Tensor:
        """`[M, K]`, in the dtype of the features."""
        return nn.functional.linear(self.features, self.prototypes.to(self.features.dtype))


class DINOHead(nn.Module):
    """MLP, L2 normalisation, prototypes: features `[M, D]` to `Projected`, whose logits are `[M, K]`.

    Args:
        in_dim: width D of the backbone.
        num_prototypes: K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width that is normalised and compared with the prototypes.
        num_layers: linear layers before the prototypes, at least 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            if index:
                layers.append(nn.GELU())
            layers.append(nn.Linear(inputs, outputs))
        self.mlp = nn.Sequential(*layers)
        self.last_layer = PrototypeLayer(bottleneck_dim, num_prototypes)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> DINOHead:
        """The head that a state dict belongs to, with its weights.

        Raises:
            ValueError: not the tensors of a head.
        """
        try:
            weights = [state[name] for name in sorted(state) if re.fullmatch(r"mlp\.\d+\.weight", name)]
            bottleneck, hidden = weights[-1].shape[0], weights[0].shape[0]
            prototypes = state["last_layer.weight_v"].shape[0]
            head = cls(weights[0].shape[1], prototypes, hidden, bottleneck, num_layers=len(weights))
            head.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"not the tensors of a head: {error}") from None
        return head

    def forward(self, features: Tensor) -> Projected:
        """Projects features `[M, D]`.

        The prototypes are returned with them, because sharded parameters are whole only during this call.
        """
        features = self.mlp(features)
        dtype = features.dtype
        features = nn.functional.normalize(features.float(), dim=-1).to(dtype)
        return Projected(features, self.last_layer.weight)
