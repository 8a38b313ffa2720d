"""Terms without prototypes: cosine distances, and the coding rate that keeps features apart (SimDINO, section 3).

Axes: `V` crops of an image of which the first two are global, `B` images of this process, `n` images of all processes,
`M` masked patches of this process, `d` width of the projections, which have unit length.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from .dino import NUM_GLOBAL_CROPS


def crop_distances(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of a student crop and a teacher view of another crop of their mean distance, 1 - cosine.

    Args:
        student: projections of all crops, `[V, B, d]`.
        teacher: projections of the global crops, `[2, B, d]`.

    Returns:
        The sum over the pairs of two global crops, and over those of a local with a global crop (0 if there is none).
    """
    student, teacher = student.float(), teacher.float()
    global_crops, local_crops = student[:NUM_GLOBAL_CROPS], student[NUM_GLOBAL_CROPS:]
    among_global = 1 - (global_crops * teacher.flip(0)).sum(dim=-1)
    with_local = NUM_GLOBAL_CROPS - (local_crops * teacher.sum(dim=0)).sum(dim=-1)
    return among_global.mean(dim=1).sum(), with_local.mean(dim=1).sum()


def patch_distance(student: Tensor, teacher: Tensor, weights: Tensor, num_images: int) -> Tensor:
    """Distance of masked patches, 1 - cosine, averaged within each image and then over the images.

    Args:
        student: projections `[M, d]`; `M` may be 0, the distance is then 0.
        teacher: those of the same patches, seen without the mask.
        weights: `[M]`, one over the number of masked patches of the patch's image.
        num_images: global crops of this process, those without a mask included.
    """
    distances = 1 - (student.float() * teacher.float()).sum(dim=-1)
    return (distances * weights).sum() / num_images


def coding_rate(features: Tensor, eps: float) -> Tensor:
    """Coding rate in nats of the features of each view, over the images of all processes: `[V]`, float32.

    `R = 1/2 log det(I + d / (n eps) Z^T Z)`, which is `1/2 log(1 + d / eps)` of equal features, and
    `d/2 log(1 + 1 / eps)` of `n = d` orthonormal ones. Computed in float64, as the eigenvalues lie between 1 and
    `1 + d / eps`. Collective, in the backward pass too: call on all ranks, with the same `B`. Every process gets the
    same value, and the mean of the gradients over the processes is that of the global batch.

    Args:
        features: `[V, B, d]` of unit length.
        eps: mean squared distortion, the square of the paper's epsilon.
    """
    _, batch, width = features.shape
    with torch.autocast(features.device.type, enabled=False):
        features = features.double()
        products = features.transpose(1, 2) @ features
        if _num_processes() > 1:
            products = all_reduce(products)
        identity = torch.eye(width, dtype=products.dtype, device=products.device)
        factor = torch.linalg.cholesky_ex(identity + products * (width / (batch * _num_processes() * eps))).L
        rates: Tensor = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        return rates.float()


def coding_rate_loss(features: Tensor, eps: float) -> Tensor:
    """Minus the mean coding rate of the views, times `1/d + 1/n`, which keeps its size at any width and batch.

    The factor is that of the published code. Collective; arguments as of `coding_rate`.
    """
    _, batch, width = features.shape
    return -(1 / width + 1 / (batch * _num_processes())) * coding_rate(features, eps).mean()


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
