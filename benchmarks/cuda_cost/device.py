"""Makes torch and accelerate take the fake device for a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _foreach_utils

from .ledger import DEVICE

_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "auto": "bf16"}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """CUDA is there: autocast, attention and multi-tensor kernels are chosen as on a card.

    Attention takes the FlashAttention 2 kernel in half precision and the memory-efficient one in float32, as torch
    chooses there.
    """
    patches = (
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.amp.autocast_mode, "is_autocast_available", lambda device_type: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (nn.functional, "scaled_dot_product_attention", _attention),
        (
            _foreach_utils,
            "_foreach_supported_types",
            [*_foreach_utils._foreach_supported_types, FakeTensor, nn.Parameter],
        ),
    )
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` copies from the host, which is seen
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        yield


def build_accelerator(precision: str) -> Accelerator:
    """An accelerator of one process on the fake device, as accelerate builds it on a CUDA device; it moves no model."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, device_placement=False, step_scheduler_with_optimizer=False)
    PartialState().device = accelerator.state.device = DEVICE
    accelerator.state._mixed_precision = _MIXED_PRECISION[precision]
    accelerator.native_amp = accelerator.mixed_precision != "no"
    if accelerator.mixed_precision == "fp16":
        accelerator.scaler = torch.amp.GradScaler(DEVICE.type)
    return accelerator


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that CUDA would choose; without a mask."""
    if attn_mask is not None or enable_gqa:
        raise NotImplementedError("attention with a mask or grouped queries is not modelled")
    kernels = torch.ops.aten
    if query.dtype == torch.float32:
        attend = kernels._scaled_dot_product_efficient_attention
        return attend(query, key, value, None, query.requires_grad, dropout_p, is_causal, scale=scale)[0]
    return kernels._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
