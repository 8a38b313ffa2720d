"""Cross-entropy between student and teacher over prototypes (DINO paper, section 3.1, equation 2), in chunks.

The student's logits are the largest tensors of a step: `[M, K]` with K up to 131,072. Here they exist for a few samples
at a time: logits, softmax, loss and gradient of a chunk are made in the forward pass, and what is kept for the
backward pass are the gradients of the features and of the prototypes, which it only has to scale. No matrix product is
done twice.

Axes: `G` crops that share a target, `M` samples, `K` prototypes, `d` width of the bottleneck.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .assignments import Assignments, chunks

Views = Sequence[Sequence[int]]
"""For each of `G` crops, or once for all of them, the views of the teacher whose assignments are summed."""


def prototype_cross_entropy(
    features: Tensor, prototypes: Tensor, teacher: Assignments, views: Views, weights: Tensor, student_temp: float
) -> Tensor:
    """Computes the cross-entropy of the student's assignments with those of the teacher, summed, a float32 scalar.

    `-sum_gm weights_m sum_k targets_gmk log softmax(features_gm . prototypes / student_temp)_k`

    Args:
        features: `[G, M, d]`, of unit length; the logits are computed in its dtype. `G` or `M` may be 0.
        prototypes: `[K, d]` float32.
        teacher: assignments of its views; view `v` is rows `v M` to `(v + 1) M`.
        views: what each crop is compared with; the same number of views for each.
        weights: `[M]`.
    """
    summed: Tensor = _PrototypeCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features, prototypes, teacher, views, weights, student_temp
    )
    return summed


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        teacher: Assignments,
        views: Views,
        weights: Tensor,
        student_temp: float,
    ) -> Tensor:
        mass = len(views[0])
        needs_gradient = any(ctx.needs_input_grad[:2])
        # float16 cannot hold gradients of the order of 1 / K, nor weights of the order of one over the masked patches
        lift = 256.0 if features.dtype == torch.float16 else 1.0
        largest = weights.max().clamp_min(torch.finfo(torch.float32).tiny) if len(weights) else 1.0
        with torch.autocast(features.device.type, enabled=False):
            matrix = prototypes.to(features.dtype)
            total = torch.zeros((), device=features.device)
            if needs_gradient:
                features_grad = torch.zeros(features.shape, device=features.device)
                prototypes_grad = torch.zeros(prototypes.shape, device=features.device)
            sharpened = (features.float() / student_temp).to(features.dtype)
            for start, stop in chunks(features.shape[1], features.shape[0] * prototypes.shape[0]):
                part, weight = features[:, start:stop], weights[start:stop, None]
                logits = (sharpened[:, start:stop].flatten(0, 1) @ matrix.T).view(*part.shape[:2], -1)
                target = _targets(teacher, views, features.shape[1], start, stop)
                losses, gradient = _losses_and_gradient(logits, target, mass * lift, lift)
                total += (losses * weight[:, 0]).sum()
                if needs_gradient:
                    gradient = gradient.flatten(0, 1)
                    features_grad[:, start:stop] = (gradient @ matrix).view(part.shape) * weight
                    # float16 cannot hold the sum over many samples that agree either: each adds up to lift * mass
                    shrink = min(torch.finfo(part.dtype).max / (2 * lift * mass * len(gradient)), 1.0)
                    part = (part * (weight / largest * shrink).to(part.dtype)).flatten(0, 1)
                    prototypes_grad.add_(gradient.T @ part, alpha=1 / shrink)
            if needs_gradient:
                features_grad /= lift * student_temp
                prototypes_grad *= largest / (lift * student_temp)
                ctx.save_for_backward(features_grad, prototypes_grad)
                ctx.dtype = features.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        features_grad, prototypes_grad = ctx.saved_tensors
        return (features_grad * grad_output).to(ctx.dtype), prototypes_grad * grad_output, None, None, None, None


def _targets(teacher: Assignments, views: Views, num_samples: int, start: int, stop: int) -> Tensor:
    """Targets `[G or 1, stop - start, K]` of a range of samples, float32."""
    rows = {
        view: teacher.rows(view * num_samples + start, view * num_samples + stop)
        for view in sorted({view for group in views for view in group})
    }
    sums = []
    for first, *others in views:
        target = rows[first]
        for view in others:
            target = target.add_(rows[view]) if len(views) == 1 else target + rows[view]
        sums.append(target)
    return sums[0].unsqueeze(0) if len(sums) == 1 else torch.stack(sums)


def _losses_and_gradient(logits: Tensor, target: Tensor, mass: float, lift: float) -> tuple[Tensor, Tensor]:
    """Of logits and targets `[G, m, K]` the cross-entropies `[G, m]`, and `mass` softmax - `lift` target."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    losses = -(target * log_probabilities).sum(dim=-1)
    gradient = log_probabilities.exp_() if mass == 1 else log_probabilities.exp_().mul_(mass)
    return losses, gradient.sub_(target, alpha=lift).to(logits.dtype)
