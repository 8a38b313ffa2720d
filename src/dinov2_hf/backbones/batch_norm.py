"""Batch norm over the samples of all processes, on CPUs (gloo) and GPUs (nccl) alike.

torch has `SyncBatchNorm`, which refuses tensors on CPUs. Axes: `M` samples of this process, `C` channels.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Batch norm of `[M, C]` or `[B, C, H, W]` with the statistics of the global batch, biased variance.

    In one process it is torch's batch norm. Over several it equals torch's on all their samples: outputs, gradients and
    running statistics (unbiased variance, the same on all ranks). Processes may have different numbers of samples, and
    none at all. Statistics are computed in float32 whatever the dtype of the input is.

    A batch with values that are not finite leaves the running statistics of its channels as they were. A block that the
    backward pass computes again counts a batch once.

    Collective in training, in the backward pass too: call on all ranks.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"the input is {list(input.shape)}; the norm takes [samples, {self.num_features}, …]")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        weight, bias, mean, var = self.weight.float(), self.bias.float(), self.running_mean, self.running_var
        rows, several = input.numel() // self.num_features, _num_processes() > 1
        if not self.training or (rows == 0 and not several):
            return nn.functional.batch_norm(input, mean.float(), var.float(), weight, bias, eps=self.eps)
        if rows == 1 and not several:
            raise ValueError(
                f"batch norm in training needs more than one value per channel, and the input is {list(input.shape)}; "
                "use more images per update (train.batch_size) or larger crops"
            )
        momentum = 0.0 if _recomputing() else self.momentum or 0.0
        if momentum:
            self.num_batches_tracked.add_(1)
        moved_mean, moved_var = mean.clone(), var.clone()
        output: Tensor
        if several:
            output = _synchronised(input, weight, bias, moved_mean, moved_var, momentum, self.eps)
        else:
            output = nn.functional.batch_norm(input, moved_mean, moved_var, weight, bias, True, momentum, self.eps)
        if momentum:
            for kept, moved in ((mean, moved_mean), (var, moved_var)):
                kept.copy_(torch.where(moved.isfinite(), moved, kept))
        return output


def batch_norms_of(module: nn.Module) -> list[SyncBatchNorm]:
    """Returns the batch norms in a module, in order."""
    return [part for part in module.modules() if isinstance(part, SyncBatchNorm)]


@torch.no_grad()
def average_running_statistics(average: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the running statistics of `average` towards those of `student`, of the same architecture."""
    for averaged, trained in zip(batch_norms_of(average), batch_norms_of(student), strict=True):
        averaged.running_mean.lerp_(trained.running_mean, 1 - momentum)
        averaged.running_var.lerp_(trained.running_var, 1 - momentum)
        averaged.num_batches_tracked.copy_(trained.num_batches_tracked)


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _recomputing() -> bool:
    """Whether this is the forward of a block that the backward pass computes again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _synchronised(
    input: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> Tensor:
    output: Tensor
    output, mean, var, count = _Normalise.apply(input, weight, bias, eps)  # type: ignore[no-untyped-call]
    if momentum:
        with torch.no_grad():
            taken = momentum * (count > 0)
            running_mean.lerp_(mean, taken)
            running_var.lerp_(var * (count / (count - 1).clamp(min=1)), taken)
    return output


class _Normalise(torch.autograd.Function):
    """Normalises with the statistics of all processes. Returns the output, mean and variance `[C]`, and count `[1]`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _global_statistics(input)
        scale = torch.rsqrt(var + eps)
        normalised = (input.float() - _along(mean, input)) * _along(scale, input)
        ctx.save_for_backward(input, weight, mean, scale, count)
        output = torch.addcmul(_along(bias, input), normalised, _along(weight, input)).to(input.dtype)
        ctx.mark_non_differentiable(mean, var, count)
        return output, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale, count = ctx.saved_tensors
        gradient = grad_output.float()
        normalised = (input.float() - _along(mean, input)) * _along(scale, input)
        sums = torch.stack((gradient.sum(_samples(input)), (gradient * normalised).sum(_samples(input))))
        of_bias, of_weight = sums.clone()  # those of this process: whatever trains adds them up over processes
        dist.all_reduce(sums)
        shift, stretch = (_along(part / count.clamp(min=1), input) for part in sums)
        of_input = (gradient - shift - normalised * stretch) * _along(weight * scale, input)
        return of_input.to(input.dtype), of_weight, of_bias, None


def _global_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[C]`, biased variance `[C]` and number of samples `[1]` over all processes, in float32. Collective.

    Made of the mean and variance of every process, as a sum of squares less the square of a sum cancels in float32.
    """
    channels = input.shape[1]
    local = torch.zeros(2 * channels + 1, dtype=torch.float32, device=input.device)
    count = input.numel() // channels
    if count:
        local[:channels], local[channels:-1] = reversed(torch.var_mean(input.float(), _samples(input), correction=0))
        local[-1].fill_(count)
    gathered = local.new_empty(dist.get_world_size() * len(local))
    dist.all_gather_into_tensor(gathered, local)
    means, variances, counts = gathered.unflatten(0, (-1, len(local))).split((channels, channels, 1), dim=1)
    total = counts.sum(dim=0)
    shares = counts / total.clamp(min=1)
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean).square())).sum(dim=0), total


def _samples(input: Tensor) -> list[int]:
    """The dimensions that are normalised over."""
    return [dim for dim in range(input.ndim) if dim != 1]


def _along(channels: Tensor, input: Tensor) -> Tensor:
    """Values of channels `[C]` in the shape that multiplies `input`."""
    return channels.view(1, -1, *itertools.repeat(1, input.ndim - 2))
