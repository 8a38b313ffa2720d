"""Signs of health that a falling loss does not show: collapse is the failure that matters, and the loss likes it.

Axes: `B` images, `M` samples of this process, `K` prototypes, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .terms import Assignments
from .terms.assignments import chunks
from .terms.reduce import gather_rows, global_sum_


@torch.no_grad()
def diagnose_batch(
    student_cls: Tensor, teacher_cls: Tensor | None, targets: Mapping[str, Assignments]
) -> dict[str, Tensor]:
    """Scalars of the global batch, equal on all ranks. Collective: call on all ranks.

    Args:
        student_cls: the student's features of the global crops, `[2B, D]`.
        teacher_cls: the teacher's features of the same crops, `[2B, D]`; without them, as where the teacher has another
            width, the rank is that of the student's features and there is no cosine.
        targets: the teacher's assignments by term.

    Returns:
        `rankme`: effective rank of the teacher's CLS; `teacher_student_cosine`: mean cosine of the two; and for each
        term `target_entropy/<term>`: mean entropy of a target as a share of `ln K`, and `prototypes_used/<term>`: share
        of the prototypes that are some sample's strongest, of those that could be (all, or as many as samples).
    """
    with torch.autocast(student_cls.device.type, enabled=False):
        ranked = student_cls if teacher_cls is None else teacher_cls
        scalars = {"rankme": rankme(gather_rows(ranked.float())[0])}
        if teacher_cls is not None:
            cosine = torch.nn.functional.cosine_similarity(student_cls.float(), teacher_cls.float(), dim=1)
            total = global_sum_(torch.stack((cosine.sum(), cosine.new_tensor(float(len(cosine))))))
            scalars["teacher_student_cosine"] = total[0] / total[1]
        for term, assignments in targets.items():
            entropy, used = _assignment_health(assignments)
            scalars[f"target_entropy/{term}"] = entropy
            scalars[f"prototypes_used/{term}"] = used
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


def _assignment_health(assignments: Assignments) -> tuple[Tensor, Tensor]:
    num_samples, num_prototypes = assignments.logits.shape
    entropy = torch.zeros(2, device=assignments.bias.device)
    entropy[1] = num_samples
    strongest = torch.zeros_like(assignments.bias)
    for start, stop in chunks(num_samples, num_prototypes):
        rows = assignments.rows(start, stop)
        strongest.index_fill_(0, rows.argmax(dim=1), 1.0)
        entropy[0] += torch.special.entr(rows).sum()
    mean, count = global_sum_(entropy)
    used = (global_sum_(strongest) > 0).sum()
    possible = count.clamp(1, num_prototypes)
    return mean / count.clamp_min(1) / torch.log(count.new_tensor(float(num_prototypes))), used / possible
