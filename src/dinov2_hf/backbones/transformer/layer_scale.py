"""LayerScale (Touvron et al., CaiT, 2021): a learned factor for each channel of a residual branch.

Axes: `M` packed tokens, `D` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .plain import is_plain


class LayerScale(nn.Module):
    """Multiplies each channel of `[..., D]` by its factor."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((width,), float(value)))

    def forward(self, residual: Tensor) -> Tensor:
        return residual * self.lambda1.to(residual.dtype)


def add_scaled(tokens: Tensor, residual: Tensor, layer_scale: nn.Module | None) -> Tensor:
    """`tokens + layer_scale(residual)`, both `[..., D]`: one operation where `layer_scale` is a plain `LayerScale`.

    Where there is no LayerScale, the sum of both.
    """
    residual = residual.to(tokens.dtype)
    if layer_scale is None:
        return tokens + residual
    if is_plain(layer_scale, LayerScale):
        return torch.addcmul(tokens, residual, layer_scale.lambda1.to(tokens.dtype))
    scaled: Tensor = layer_scale(residual)
    return tokens + scaled.to(tokens.dtype)
