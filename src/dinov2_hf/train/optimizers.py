"""The optimisers, and how one is built from the configuration.

All have one contract: an update whose attribute `found_inf` is 1 leaves parameters and state as they were, without
asking the device, and a parameter without gradient is left alone. torch's AdamW keeps it with its fused kernel; SGD and
LARS call torch's fused kernel for SGD on the shards of this process, as it does not take sharded tensors itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import OptimConfig
from .norms import fused_first, joint_norms, local, whole_norms


class SGD(Optimizer):
    """SGD with momentum, as torch's: `buffer = momentum buffer + gradient + decay weight; weight -= lr buffer`.

    Args:
        params: parameters or groups of them.
        momentum: 0 for none; the same in all groups.
    """

    found_inf: Tensor | None = None
    """1 where the gradient is not finite, else 0; None: it is finite."""

    def __init__(self, params: Any, lr: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._step_supports_amp_scaling = True  # the gradient scaler of fp16 then sets `found_inf` and does not wait

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes an update. The gradients may be changed in place. Collective where parameters are sharded."""
        moved = []
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                moved.append((group, parameters))
        decays = self._directions_(moved)
        for (group, parameters), weight_decay in zip(moved, decays):
            shards = [local(parameter) for parameter in parameters]
            torch._fused_sgd_(
                shards,
                [local(parameter.grad) for parameter in parameters],
                [local(self._buffer_of(parameter)) for parameter in parameters] if group["momentum"] else [],
                weight_decay=weight_decay,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=None,
                found_inf=None if self.found_inf is None else self.found_inf.to(shards[0].device),
            )

    def _directions_(self, moved: Sequence[tuple[dict[str, Any], list[nn.Parameter]]]) -> list[float]:
        """Changes gradients in place before they enter the momentum. Returns the weight decay still to be added."""
        return [group["weight_decay"] for group, _ in moved]

    def _buffer_of(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


class LARS(SGD):
    """SGD whose step for each matrix follows the norm of that matrix (You et al., 2017), as the published DINO code.

    The gradient with weight decay of a parameter of more than one dimension is scaled by `eta |weight| / |gradient|`,
    where both norms are positive. Others get neither decay nor scale.

    Args:
        eta: the trust coefficient.
    """

    def __init__(
        self, params: Any, lr: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 0.001
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.eta = eta
        self.fused: Sequence[Sequence[nn.Parameter]] = ()
        """Groups of parameters of the same size that count as one, such as the projections of an attention."""

    def _directions_(self, moved: Sequence[tuple[dict[str, Any], list[nn.Parameter]]]) -> list[float]:
        weights: list[nn.Parameter] = []
        for group, parameters in moved:
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            if matrices:
                gradients = [local(gradient) for gradient in _gradients_of(matrices)]
                torch._foreach_add_(gradients, [local(matrix) for matrix in matrices], alpha=group["weight_decay"])
                weights += matrices
        if weights:
            weights, groups = fused_first(weights, self.fused)
            of_weights, of_gradients = (
                joint_norms(norms, groups) for norms in whole_norms([*weights, *_gradients_of(weights)]).chunk(2)
            )
            trusted = (of_weights > 0) & (of_gradients > 0)
            scales = torch.where(trusted, self.eta * of_weights / of_gradients, 1.0)
            torch._foreach_mul_([local(gradient) for gradient in _gradients_of(weights)], list(scales.unbind()))
        return [0.0] * len(moved)


def _gradients_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    """Builds the optimiser that `optim.optimizer` names over groups of parameters; their schedules set lr and decay."""
    settings = optim.settings
    if optim.optimizer == "adamw":
        beta1, beta2 = settings["betas"]
        return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), fused=True)
    kind = {"sgd": SGD, "lars": LARS}[optim.optimizer]
    return kind(groups, momentum=settings["momentum"])


@torch.no_grad()
def create_state(optimizer: Optimizer) -> None:
    """Gives every parameter the state that a run starts with, by an update that is skipped.

    So checkpoints have the same entries from the first one on, also of parameters whose gradients are dropped at first.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    marked: Any = optimizer  # what the kernels read is not declared
    marked.found_inf = torch.ones((), device=local(parameters[0]).device)
    optimizer.step()
    del marked.found_inf
    optimizer.zero_grad()
