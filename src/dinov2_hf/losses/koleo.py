"""The KoLeo regulariser (Sablayrolles et al., 2019; DINOv2, section 4, "KoLeo regularizer")."""

import torch
from torch import Tensor


def koleo_loss(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean of `-log` distance to the nearest neighbour within the batch, of unit-length features; float32.

    Args:
        features: `[B, D]`. With fewer than two there is no neighbour and the loss is 0. Identical features give a
            large but finite loss.
    """
    if features.shape[0] < 2:
        return features.float().sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), dim=-1, eps=eps)
        with torch.no_grad():
            similarities = features @ features.T
            similarities.fill_diagonal_(-1)
            nearest = similarities.argmax(dim=1)
        distances = torch.nn.functional.pairwise_distance(features, features[nearest], eps=eps)
        return -torch.log(distances + eps).mean()
