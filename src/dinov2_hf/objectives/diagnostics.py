"""Signs of health that a falling loss does not show: collapse is the failure that matters, and the loss likes it.

Axes: `B` images, `M` samples of this process, `K` prototypes, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .terms import Assignments
from .terms.assignments import chunks
from .terms.reduce import gather_rows, global_sum_


class CrossEntropy(NamedTuple):
    """How the student answers targets, of this process."""

    value: Tensor
    """`sum_m weights_m H(target_m, student_m)`, or the mean over several answers to a target; a scalar."""
    weights: Tensor | None = None
    """`[M]`; None: one over `M` each."""


@torch.no_grad()
def diagnose_batch(
    student_cls: Tensor,
    teacher_cls: Tensor | None,
    targets: Mapping[str, Assignments],
    answers: Mapping[str, CrossEntropy] | None = None,
) -> dict[str, Tensor]:
    """Scalars of the global batch, equal on all ranks. Collective: call on all ranks.

    Args:
        student_cls: the student's features of the global crops, `[2B, D]`.
        teacher_cls: the teacher's features of the same crops, `[2B, D]`; without them, as where the teacher has another
            width, the rank is that of the student's features and there is no cosine.
        targets: the teacher's assignments by term.
        answers: the cross-entropies of the student's assignments with them, by term.

    Returns:
        `rankme`: effective rank of the teacher's CLS; `teacher_student_cosine`: mean cosine of the two; and for each
        term `target_entropy/<term>`: mean entropy of a target as a share of `ln K`, `prototypes_used/<term>`: share
        of the prototypes that are some sample's strongest, of those that could be (all, or as many as samples);
        where the entropy of the targets is controlled, `teacher_temp/<term>`: their temperature; and, where there are
        answers, `target_kl/<term>`: weighted mean of the Kullback-Leibler divergence `KL(target | student)` in nats,
        which is the cross-entropy less the entropy of the target. Where targets
        collapse it falls to 0, whether they become uniform or all the same (DINO paper, section 5.3).
    """
    with torch.autocast(student_cls.device.type, enabled=False):
        ranked = student_cls if teacher_cls is None else teacher_cls
        scalars = {"rankme": rankme(gather_rows(ranked.float())[0])}
        if teacher_cls is not None:
            cosine = torch.nn.functional.cosine_similarity(student_cls.float(), teacher_cls.float(), dim=1)
            total = global_sum_(torch.stack((cosine.sum(), cosine.new_tensor(float(len(cosine))))))
            scalars["teacher_student_cosine"] = total[0] / total[1]
        for term, assignments in targets.items():
            answer = (answers or {}).get(term)
            entropy, used, weighted = _assignment_health(assignments, answer.weights if answer else None)
            scalars[f"target_entropy/{term}"] = entropy
            scalars[f"prototypes_used/{term}"] = used
            if isinstance(assignments.temperature, Tensor):
                scalars[f"teacher_temp/{term}"] = assignments.temperature
            if answer:
                divergence, weight = global_sum_(torch.stack((answer.value.float() - weighted[0], weighted[1])))
                scalars[f"target_kl/{term}"] = torch.where(weight > 0, divergence / weight, 0.0)
    return scalars


def rankme(features: Tensor, eps: float = 1e-7) -> Tensor:
    """Effective rank of features `[B, D]`: `exp` of the entropy of their singular values (Garrido et al., 2023, eq. 1).

    Between 1 (all on a line) and `min(B, D)`; NaN where a feature is not finite, instead of an error.
    """
    features = features.float()
    finite = features.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, features, 0.0))
    shares = values / values.sum().clamp_min(eps) + eps
    return torch.where(finite, torch.exp(-(shares * shares.log()).sum()), torch.nan)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of features `[B, D]` of unit length over the global batch: mean of the channels, by `sqrt(D)`.

    1 where they spread over all directions, 0 where they are equal (SimSiam, section 4.1). Collective.
    """
    pool, _ = gather_rows(features.float())
    mean: Tensor = pool.std(dim=0, correction=0).mean()
    return mean * math.sqrt(pool.shape[1])


def _assignment_health(assignments: Assignments, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy and use of prototypes, and `[2]` of this process: the weighted sum of entropies in nats, and of weights.

    Args:
        weights: `[M]`; None: one over `M` each.
    """
    num_samples, num_prototypes = assignments.logits.shape
    entropy = torch.zeros(2, device=assignments.bias.device)
    entropy[1] = num_samples
    strongest = torch.zeros_like(assignments.bias)
    if weights is None:
        weights = torch.full((num_samples,), 1 / max(num_samples, 1), device=entropy.device)
    weighted = torch.stack((entropy[0], weights.float().sum()))
    for start, stop in chunks(num_samples, num_prototypes):
        rows = assignments.rows(start, stop)
        strongest.index_fill_(0, rows.argmax(dim=1), 1.0)
        entropies = torch.special.entr(rows)
        entropy[0] += entropies.sum()
        weighted[0] += entropies.sum(dim=1) @ weights[start:stop].float()
    mean, count = global_sum_(entropy)
    used = (global_sum_(strongest) > 0).sum()
    possible = count.clamp(1, num_prototypes)
    share = mean / count.clamp_min(1) / torch.log(count.new_tensor(float(num_prototypes)))
    return share, used / possible, weighted
