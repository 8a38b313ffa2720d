"""The projection heads, with prototypes and without (DINO paper, section 3.1; iBOT; DINOv2 Appendix B)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbones.batch_norm import SyncBatchNorm


class PrototypeLayer(nn.Module):
    """Weight-normalised linear layer without bias: logits are scaled cosines when the input has unit length.

    `weight_v` `[K, d]` holds the directions and `weight_g` `[K, 1]` the lengths, as the published heads name them.

    Args:
        bottleneck_dim: d.
        num_prototypes: K.
        fixed_lengths: the lengths stay what they are, 1 from the start, and take no gradient.
    """

    def __init__(self, bottleneck_dim: int, num_prototypes: int, fixed_lengths: bool = False) -> None:
        super().__init__()
        self.fixed_lengths = fixed_lengths
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not fixed_lengths)
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


class ProjectionHead(nn.Module):
    """MLP and L2 normalisation: features `[M, D]` to `[M, d]` of unit length, float32.

    Args:
        in_dim: width D of the backbone.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width d of the output.
        num_layers: linear layers, at least 1.
        batch_norm: batch norm after each hidden layer, before the activation.
        draw: draw the weights; a subclass whose own weights are drawn before calls `draw_weights` itself.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        draw: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            if index:
                layers += [SyncBatchNorm(inputs)] * batch_norm
                layers.append(nn.GELU())
            layers.append(nn.Linear(inputs, outputs))
        self.mlp = nn.Sequential(*layers)
        if draw:
            self.draw_weights()

    def draw_weights(self) -> None:
        """Draws the weights of the MLP from a truncated normal of 0.02; its biases become 0."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Any:
        return nn.functional.normalize(self.mlp(features).float(), dim=-1)


class DINOHead(ProjectionHead):
    """MLP, L2 normalisation, prototypes: features `[M, D]` to `Projected`, whose logits are `[M, K]`.

    Args:
        in_dim: width D of the backbone.
        num_prototypes: K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width that is normalised and compared with the prototypes.
        num_layers: linear layers before the prototypes, at least 1.
        batch_norm: batch norm after each hidden layer, before the activation.
        norm_last_layer: the lengths of the prototypes are not trained.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = False,
    ) -> None:
        super().__init__(in_dim, hidden_dim, bottleneck_dim, num_layers, batch_norm, draw=False)
        self.last_layer = PrototypeLayer(bottleneck_dim, num_prototypes, norm_last_layer)
        self.draw_weights()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> DINOHead:
        """The head that a state dict belongs to, with its weights.

        Raises:
            ValueError: not the tensors of a head.
        """
        try:
            names = [name for name in state if re.fullmatch(r"mlp\.\d+\.weight", name) and state[name].ndim == 2]
            weights = [state[name] for name in sorted(names, key=lambda name: int(name.split(".")[1]))]
            bottleneck, hidden = weights[-1].shape[0], weights[0].shape[0]
            prototypes = state["last_layer.weight_v"].shape[0]
            batch_norm = any(name.endswith("running_mean") for name in state)
            head = cls(weights[0].shape[1], prototypes, hidden, bottleneck, len(weights), batch_norm)
            head.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"not the tensors of a head: {error}") from None
        return head

    def project(self, features: Tensor) -> Tensor:
        """Returns what is compared with the prototypes, `[M, d]` of unit length, of features `[M, D]`."""
        features = self.mlp(features)
        dtype = features.dtype
        return nn.functional.normalize(features.float(), dim=-1).to(dtype)

    def forward(self, features: Tensor) -> Projected:
        """Projects features `[M, D]`.

        The prototypes are returned with them, because sharded parameters are whole only during this call.
        """
        return Projected(self.project(features), self.last_layer.weight)


class IBOTHead(DINOHead):
    """The head of iBOT: one MLP for CLS and patches, with the same prototypes or prototypes of their own.

    Args:
        num_patch_prototypes: prototypes of the patches (`last_layer2`); None: those of CLS.
        others: as of `DINOHead`.
    """

    def __init__(
        self, in_dim: int, num_prototypes: int, num_patch_prototypes: int | None = None, **others: Any
    ) -> None:
        super().__init__(in_dim, num_prototypes, **others)
        self.last_layer2: PrototypeLayer | None = None
        if num_patch_prototypes is not None:
            dim = self.last_layer.weight_v.shape[1]
            self.last_layer2 = PrototypeLayer(dim, num_patch_prototypes, self.last_layer.fixed_lengths)

    def forward(  # type: ignore[override]
        self, cls: Tensor, patches: Tensor, separate: bool = True
    ) -> tuple[Projected, Projected]:
        """Projects CLS `[B, D]` and patches `[M, D]` together, so that batch norm sees both.

        Args:
            separate: compare patches with their own prototypes, where there are any.
        """
        projected = self.project(torch.cat((cls, patches)))
        of_cls, of_patches = projected.split((len(cls), len(patches)))
        prototypes = self.last_layer.weight
        own = self.last_layer2 if separate else None
        return Projected(of_cls, prototypes), Projected(of_patches, prototypes if own is None else own.weight)
