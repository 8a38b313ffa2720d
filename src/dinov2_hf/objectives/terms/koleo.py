"""The KoLeo regulariser (Sablayrolles et al., 2019; DINOv2, section 4, "KoLeo regularizer")."""

import torch
from torch import Tensor

from .reduce import gather_rows


def koleo_loss(features: Tensor, distributed: bool = False, eps: float = 1e-8) -> Tensor:
    """Mean of `-log` distance to the nearest neighbour within the batch, of unit-length features; float32.

    Args:
        features: `[B, D]`. Where there is no neighbour the loss is 0. Identical features give a large but finite loss.
        distributed: look for neighbours in the batches of all processes. Collective then: call on all ranks, with the
            same `B`; the mean over the processes is the loss of the global batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), dim=-1, eps=eps)
        pool, first = gather_rows(features) if distributed else (features, 0)
        if pool.shape[0] < 2:
            return features.sum() * 0.0
        with torch.no_grad():
            similarities = features @ pool.T
            similarities.diagonal(first).fill_(-1)
            nearest = similarities.argmax(dim=1)
        distances = torch.nn.functional.pairwise_distance(features, pool[nearest], eps=eps)
        return -torch.log(distances + eps).mean()
