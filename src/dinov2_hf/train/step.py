"""One update of student and teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ..backbones import Backbone
from ..config import RunConfig
from ..data import SSLBatch
from ..objectives import Objective
from .accelerator import compute_dtype, shard_by_blocks
from .norms import clip_each_, fused_parameters
from .optimizers import LARS, build_optimizer, create_state
from .param_groups import apply_schedule, build_param_groups
from .schedules import StepValues

_STOCHASTIC_DEPTH = 3  # keeps this random stream apart from those of the data


class TrainingStep:
    """Model and optimiser as accelerate prepared them, and the update that moves them.

    A gradient that is not finite is skipped before it reaches weights or teacher, without asking the device: the
    optimiser gets a flag. `counters` `[2]` holds the updates skipped so far, and in a row.

    Args:
        model: the objective, with the weights that the run starts from.
        config: of the run.
        accelerator: prepares the model.
        head_warmup: whether the backbone has a learning rate of its own at the start, see `init.head_warmup_epochs`.
    """

    def __init__(
        self, model: Objective[Any], config: RunConfig, accelerator: Accelerator, head_warmup: bool = False
    ) -> None:
        optim = config.optim
        self.config = config
        self.accelerator = accelerator
        self.model = model
        _refuse_parameters_of_no_student(model)
        groups = [
            group for student, _ in model.networks.values() for group in build_param_groups(student, optim, head_warmup)
        ]
        optimizer = build_optimizer(groups, optim)
        dropped = optim.freeze_last_layer_epochs if optim.freeze_last_layer_by == "gradients" else 0
        self._dropped_steps = round(dropped * config.train.epoch_length)
        self._wrapped: nn.Module
        self._optimizer: AcceleratedOptimizer
        shard_by_blocks(accelerator, model)
        self._wrapped, self._optimizer = accelerator.prepare(model, optimizer)
        create_state(self.optimizer)
        self._fused = {name: fused_parameters(network) for name, network in self._networks()}
        if isinstance(self.optimizer, LARS):
            self.optimizer.fused = [group for groups in self._fused.values() for group in groups]
        register_fsdp_forward_method(model, "features")  # does nothing where parameters are not sharded
        for teacher in model.frozen:
            teacher.place(accelerator.device, compute_dtype(accelerator), sharded=isinstance(model, FSDPModule))
        self.counters = torch.zeros(2, device=accelerator.device)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself, as it was before accelerate wrapped it."""
        optimizer: torch.optim.Optimizer = self._optimizer.optimizer
        return optimizer

    def __call__(
        self, next_batch: Callable[[], SSLBatch], values: StepValues, step: int, diagnose: bool = False
    ) -> dict[str, Tensor]:
        """One update from `train.gradient_accumulation_steps` batches. Collective: call on all ranks.

        Args:
            next_batch: gives a batch on the device, coloured and normalised.
            values: schedules at this step.
            step: updates made before.
            diagnose: add the signs of health and the gradient norm of every part.

        Returns:
            Scalars on the device: `loss`, `loss/<term>`, `grad_norm/<network>`.
        """
        accelerator, accumulation = self.accelerator, self.config.train.gradient_accumulation_steps
        apply_schedule(self._optimizer.param_groups, values)
        self._wrapped.train()
        scalars: dict[str, Tensor] = {}
        for micro in range(accumulation):
            batch = next_batch()
            self._seed_forward(step, micro)
            last = micro == accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self._wrapped):
                output = self._wrapped(batch, values, diagnose=diagnose and last)
                accelerator.backward(output.loss / accumulation)
            terms = {f"loss/{name}": term for name, term in output.terms.items()}
            for name, value in {"loss": output.loss.detach(), **terms}.items():
                share = value / accumulation
                scalars[name] = scalars[name] + share if name in scalars else share
        accelerator.unscale_gradients()
        if diagnose:
            scalars |= output.diagnostics | self._norms_of_parts()
        scalars |= self._clip()
        if step < self._dropped_steps:
            self._drop_last_layer()
        lagging = self.config.average_update == "previous_update"
        if lagging:
            self.model.update_averages(values)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if not lagging:
            self.model.update_averages(values)
        return scalars

    def _clip(self) -> dict[str, Tensor]:
        """Clips the gradient of each network or parameter, and makes the optimiser skip one that is not finite.

        Returns:
            The norm of the gradient of each network before clipping.
        """
        limit = self.config.optim.clip_grad or float("inf")
        by_parameter = self.config.optim.clip_by == "parameter"
        norms = {}
        for name, network in self._networks():
            if by_parameter:
                norm = clip_each_(network.parameters(), limit, self._fused[name])
            else:
                norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
            norms[f"grad_norm/{name}"] = _whole(norm)
        skip = (~torch.isfinite(torch.stack(list(norms.values()))).all()).float()
        if self.accelerator.scaler is None:  # in fp16 the gradient scaler does the same
            optimizer: Any = self.optimizer  # what its kernel reads is not declared
            optimizer.found_inf = skip
        skip = skip.to(self.counters.device)
        self.counters = (self.counters + skip) * torch.stack((torch.ones_like(skip), skip))
        return {name: _finite(norm).to(self.counters.device) for name, norm in norms.items()}

    def _drop_last_layer(self) -> None:
        """Leaves the prototypes without gradient, so that the optimiser sees neither them nor their weight decay."""
        for group in self._optimizer.param_groups:
            if group["is_last_layer"]:
                for parameter in group["params"]:
                    parameter.grad = None

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The trained networks, by name; where there are several students, after the name of theirs."""
        for student, networks in self.model.networks.items():
            for name, network in networks.student.items():
                yield f"{student}.{name}" if student else name, network

    def _norms_of_parts(self) -> dict[str, Tensor]:
        """Gradient norms before clipping: of the blocks and other parts of backbones, and of the parts of heads."""
        parts: dict[str, nn.Module] = {}
        for name, network in self._networks():
            prefix = name.removesuffix("backbone")
            if prefix != name:
                parts |= {f"{prefix}{part}": module for part, module in _parts_of(network).items()}
            else:
                parts |= {f"{name}.{part}": module for part, module in network.named_children()}
        norms = {}
        for name, part in parts.items():
            gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
            norm = _whole(nn.utils.get_total_norm(gradients))
            norms[f"grad_norm_of/{name}"] = _finite(norm).to(self.counters.device)
        return norms

    def _seed_forward(self, step: int, micro: int) -> None:
        """Stochastic depth is drawn from `(seed, step, forward, rank)`, so a resumed run draws the same."""
        entropy = [self.config.train.seed, _STOCHASTIC_DEPTH, step, micro, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _parts_of(backbone: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a backbone in the place of the child that holds them, and its other children."""
    parts: dict[str, nn.Module] = {}
    blocks = dict(cast(Backbone, backbone).blocks)
    held = set(map(id, blocks.values()))
    for name, child in backbone.named_children():
        if any(id(module) in held for module in child.modules()):
            parts |= blocks
        elif next(child.parameters(), None) is not None:
            parts[name] = child
    return parts


def _refuse_parameters_of_no_student(model: Objective[Any]) -> None:
    """Refuses trainable parameters that no optimiser would move.

    Raises:
        ValueError: naming the parameter.
    """
    trained = {id(parameter) for student, _ in model.networks.values() for parameter in student.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise ValueError(
                f"{name} of {type(model).__name__} is trainable but part of no student, so no optimiser moves it; "
                "return its module from build_networks, or freeze it"
            )


def _whole(norm: Tensor) -> Tensor:
    """A norm over sharded gradients, summed over the shards."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _finite(norm: Tensor) -> Tensor:
    return torch.nan_to_num(norm, nan=0.0, posinf=0.0)
