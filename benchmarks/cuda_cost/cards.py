"""Graphics cards, and how long one kernel takes on each: the roofline.

Nominal figures are those of the makers' data sheets. What a kernel achieves of them is in `Shares`: for the H100 from
published measurements of copies, cuBLAS and FlashAttention 2, for the other cards assumed, until the acceptance
(`benchmarks/cuda_acceptance.py`) has run there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .kernels import Kind, Work


@dataclass(frozen=True)
class Shares:
    """What kernels achieve, as shares of the nominal figures."""

    element_wise: float = 0.82
    """Of the bandwidth: element-wise kernels, reductions, gathers."""
    product_operands: float = 0.9
    """Of the bandwidth: the operands of matrix products."""
    product: float = 0.786
    """Of the peak in half precision: products of large matrices."""
    batched: float = 0.303
    """Likewise: batched products."""
    convolution: float = 0.253
    """Likewise: the patch embedding."""
    attention: float = 0.307
    """Likewise: FlashAttention 2 with heads of 64, forward."""
    attention_backward: float = 0.243
    """Likewise, backward."""
    single: float = 0.887
    """Of the peak in float32: products of large matrices."""
    single_other: float = 0.448
    """Of the peak in float32: batched products, convolutions, attention."""
    cache: float = 0.8
    """Of the L2 cache: tensors up to this are served by it, in `cached_time` of the time."""
    cached_time: float = 0.6


@dataclass(frozen=True)
class Card:
    """One GPU, by its data sheet."""

    name: str
    source: str
    half_flops: float
    """Dense products in bf16 and fp16, FLOP/s."""
    single_flops: float
    """float32 without TF32, FLOP/s."""
    bandwidth: float
    """Bytes/s of the memory."""
    memory: float
    """Bytes."""
    cache: float
    """Bytes of the L2 cache."""
    multiprocessors: int
    host_bandwidth: float
    """Bytes/s from the host, one way."""
    shares: Shares = field(default_factory=Shares)

    def seconds(self, work: Work) -> float:
        """How long the kernels of one operation take."""
        least = LEAST_SECONDS * work.kernels
        if work.kind is Kind.HOST_COPY:
            return max(work.bytes / (0.85 * self.host_bandwidth), least)
        if work.kind is Kind.MEMORY:
            in_cache = work.bytes <= self.shares.cache * self.cache
            moved = work.bytes * (self.shares.cached_time if in_cache else 1.0)
            return max(moved / (self.shares.element_wise * self.bandwidth), least)
        operands = work.bytes / (self.shares.product_operands * self.bandwidth)
        return max(work.flops / self._rate(work), operands, LEAST_SECONDS)

    def _rate(self, work: Work) -> float:
        """Sustained FLOP/s."""
        shares = self.shares
        if work.kind is Kind.PRODUCT:
            return (shares.product * self.half_flops if work.half else shares.single * self.single_flops) * (
                self._fill(*work.shape, work.half)
            )
        if not work.half:
            return shares.single_other * self.single_flops
        if work.kind in (Kind.ATTENTION, Kind.ATTENTION_BACKWARD):
            share = shares.attention if work.kind is Kind.ATTENTION else shares.attention_backward
            (tokens,) = work.shape
            filled = tokens / (math.ceil(tokens / _ATTENTION_TILE) * _ATTENTION_TILE)
            return share * self.half_flops * filled**2
        return {Kind.BATCHED: shares.batched, Kind.CONVOLUTION: shares.convolution}[work.kind] * self.half_flops

    def _fill(self, m: int, n: int, k: int, half: bool) -> float:
        """How much of the multiprocessors a product `[m, k] @ [k, n]` keeps busy: tiles, waves, prologue."""
        rows, columns = math.ceil(m / _TILE[0]), math.ceil(n / _TILE[1])
        inside = m / (rows * _TILE[0]) * n / (columns * _TILE[1])
        waves = rows * columns / self.multiprocessors
        if waves > 4:
            busy = max(waves / math.ceil(waves), 0.9)
        elif waves > 1:
            busy = waves / math.ceil(waves)
        else:  # the sum over a long k is split over several tiles
            busy = max(waves, min(1.0, waves * max(1, k // 1024)))
        prologue = k / (k + 256) if half else 1.0
        return max(inside, 0.05) * max(busy, 0.02) * prologue


LEAST_SECONDS = 2.5e-6
"""What the smallest kernel takes on the device."""
HOST_SECONDS_A_KERNEL, HOST_SECONDS_AN_OPERATION = 5e-6, 2e-6
"""What the host needs to launch."""
_TILE = (128, 256)
_ATTENTION_TILE = 128

CARDS = {
    "h100": Card(
        name="H100 SXM 80 GB",
        source="NVIDIA H100 Tensor Core GPU data sheet and architecture white paper",
        half_flops=989e12,
        single_flops=67e12,
        bandwidth=3.35e12,
        memory=80e9,
        cache=50e6,
        multiprocessors=132,
        host_bandwidth=64e9,
    ),
    "h200": Card(
        name="H200 SXM 141 GB",
        source="NVIDIA H200 Tensor Core GPU data sheet",
        half_flops=989e12,
        single_flops=67e12,
        bandwidth=4.8e12,
        memory=141e9,
        cache=50e6,
        multiprocessors=132,
        host_bandwidth=64e9,
    ),
    "a100": Card(
        name="A100 SXM 80 GB",
        source="NVIDIA A100 80GB data sheet and architecture white paper; attention: FlashAttention 2 paper, section 4",
        half_flops=312e12,
        single_flops=19.5e12,
        bandwidth=2.039e12,
        memory=80e9,
        cache=40e6,
        multiprocessors=108,
        host_bandwidth=32e9,
        shares=Shares(attention=0.5, attention_backward=0.4),
    ),
}
