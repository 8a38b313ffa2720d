"""The projection head between backbone and prototypes (DINO paper, section 3.1; DINOv2 Appendix B)."""

from __future__ import annotations

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

    def forward(self, features: Tensor) -> Tensor:
        weight = nn.functional.normalize(self.weight_v.float(), dim=1) * self.weight_g.float()
        return nn.functional.linear(features, weight.to(features.dtype))


class DINOHead(nn.Module):
    """MLP, L2 normalisation, prototypes: features `[M, D]` to logits `[M, K]`.

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

    def forward(self, features: Tensor) -> Tensor:
        features = self.mlp(features)
        eps = 1e-6 if features.dtype == torch.float16 else 1e-12
        return self.last_layer(nn.functional.normalize(features, dim=-1, eps=eps))
