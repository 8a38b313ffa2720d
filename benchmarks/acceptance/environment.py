"""What the machine can do: products, memory, launches, and attention by kernel at the lengths of this project."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .context import Context, rounded
from .machine import device, num_cores, on_cuda, timed

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow", "triton", "flash-attn", "xformers")
_PRODUCTS = (
    (8192, 8192, 8192),
    *((58496, 4096, 1024), (58496, 1152, 384), (58496, 1536, 384), (29248, 3072, 1024), (20160, 8192, 1536)),
    *((128, 131072, 256), (128, 256, 131072), (4096, 131072, 256)),  # logits, and the gradient of features
)
"""Rows, columns and inner width of products of an update."""
_ATTENTION = ((128, 6, 261), (512, 6, 54), (128, 16, 257), (512, 16, 50), (48, 24, 257), (192, 24, 50))
"""Sequences, heads of 64 channels and tokens of the cases S64, L64 and g24."""
_BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def environment(context: Context) -> None:
    _machine(context)
    _products(context)
    _memory(context)
    _launches(context)
    _attention(context)


def _machine(context: Context) -> None:
    found = {"python": platform.python_version(), "cores": num_cores()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if on_cuda():
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "memory_gb": rounded(card.total_memory / 1e9), "sms": card.multi_processor_count}
        found |= {"cards": torch.cuda.device_count(), "cudnn": str(torch.backends.cudnn.version())}
    context.report("machine", **found)


def _products(context: Context) -> None:
    def rate(rows: int, columns: int, inner: int, dtype: torch.dtype) -> float:
        a, b = torch.randn(rows, inner, device=device()), torch.randn(inner, columns, device=device())
        a, b = a.to(dtype), b.to(dtype)
        ms = timed(lambda: a @ b, context.size(10, 1), context.size(3, 1))["ms"]
        return rounded(2 * rows * columns * inner / ms / 1e9)

    for shape in context.size(_PRODUCTS, ((64, 64, 64),)):
        with context.case("products", rows_columns_inner=list(shape), dtype="bf16") as row:
            row["tflops"] = rate(*shape, torch.bfloat16)
    side = context.size(8192, 64)
    for dtype in ("fp16", "fp32", "tf32"):
        with context.case("products", rows_columns_inner=[side] * 3, dtype=dtype) as row:
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
            row["tflops"] = rate(side, side, side, torch.float16 if dtype == "fp16" else torch.float32)
            torch.backends.cuda.matmul.allow_tf32 = False


def _memory(context: Context) -> None:
    big = torch.randn(context.size(2**28, 2**16), device=device())
    other = torch.empty_like(big)
    repeat = context.size(10, 1)
    for name, passes, work in (
        ("copy", 2, lambda: other.copy_(big)),
        ("add", 3, lambda: torch.add(big, other, out=other)),
    ):
        with context.case("memory", operation=name) as row:
            row["tb_per_second"] = rounded(passes * big.nbytes / timed(work, repeat, 2)["ms"] / 1e9)


def _launches(context: Context) -> None:
    small = torch.zeros(8, device=device())
    leaf = torch.zeros(8, device=device(), requires_grad=True)
    count = context.size(1000, 10)

    def launch() -> None:
        for _ in range(count):
            small.add_(1)

    def differentiate() -> None:
        value = leaf
        for _ in range(count):
            value = value * 1.0
        value.sum().backward()

    for name, work in (("launch", launch), ("forward and backward of an operation", differentiate)):
        times = timed(work, context.size(5, 1), 1)
        us = {key.replace("ms", "us"): rounded(1e3 * value / count) for key, value in times.items()}
        context.report("launches", operation=name, **us)


def _attention(context: Context) -> None:
    for sequences, heads, tokens in context.size(_ATTENTION, ((2, 2, 17),)):
        shape = (sequences, tokens, 3, heads, 64)  # as the projections leave it: strided
        qkv = torch.randn(shape, device=device(), dtype=torch.bfloat16, requires_grad=True)
        for name, backend in _BACKENDS.items():

            def forward(qkv=qkv) -> torch.Tensor:
                return torch.nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))

            def both(qkv=qkv, forward=forward) -> None:
                qkv.grad = None
                forward().sum().backward()

            with (
                context.case("attention", sequences=sequences, heads=heads, tokens=tokens, kernel=name) as row,
                sdpa_kernel(backend) if backend is not None else contextlib.nullcontext(),
            ):
                repeat = context.size(10, 1)
                row["forward_ms"] = ms = timed(forward, repeat, context.size(3, 1))["ms"]
                row["both_ms"] = both_ms = timed(both, repeat, context.size(3, 1))["ms"]
                flops = 4 * sequences * heads * tokens**2 * 64
                row["forward_tflops"] = rounded(flops / ms / 1e9)
                row["backward_tflops"] = rounded(2.5 * flops / max(both_ms - ms, 1e-3) / 1e9)
