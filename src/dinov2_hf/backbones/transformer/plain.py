"""Whether a module computes what its class says, so that its parameters may be used without calling it."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

Kind = TypeVar("Kind", bound=nn.Module)
_ORDINARY = (nn.Parameter, Tensor, FakeTensor, type(None))
"""Types of parameters; a fake tensor stands for an ordinary one while a module is traced."""


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether calling `module` is exactly `kind.forward` on its own parameters.

    It is not where something else takes part in the call: a subclass or a wrapper (adapters), a hook (pruning, capture
    of activations, gradients), a `forward` replaced on the instance (offloading), or parameters that are a tensor
    subclass (quantisation). Such a module has to be called; a faster path that reads its parameters would leave the
    others out.
    """
    return (
        type(module) is kind
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and "forward" not in module.__dict__
        and all(type(parameter) in _ORDINARY for parameter in module._parameters.values())
        and not _has_any_global_hook()
    )
