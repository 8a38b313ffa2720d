"""Imitating features: cosine and smooth L1 (as in AM-RADIO, section 3.2, and its relatives).

Axes: `M` tokens, `D` width.
"""

import torch
from torch import Tensor, nn


def feature_loss(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How far `features` `[M, D]` are from `targets` `[M, D]`: one minus the cosine, and the smooth L1 distance.

    Both are means in float32, 0 of no tokens. Targets are first brought to mean 0 and deviation 1, token by token,
    so that teachers of any scale give losses of the same size.
    """
    if not len(features):
        zero = features.float().sum()
        return zero, zero
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        targets = nn.functional.layer_norm(targets.float(), targets.shape[-1:])
        cosine = 1 - nn.functional.cosine_similarity(features, targets, dim=-1).mean()
        return cosine, nn.functional.smooth_l1_loss(features, targets)
