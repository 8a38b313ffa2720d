"""What an image is before it is decoded, and the settings that decide what can be decoded and to which values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..config import DataConfig


class BrokenImage(ValueError):
    """Bytes that cannot be decoded."""


@dataclass(frozen=True)
class Decoding:
    """Settings of every decoder; the section `data` of a run has the same keys. Equal settings give equal pixels."""

    bits: int = DataConfig.bits
    """Bits that integers of 16 bits use: the value `2 ** bits - 1` becomes 1."""
    truncated_jpegs: bool = DataConfig.truncated_jpegs
    """Whether JPEG files that lack their last bytes are read."""
    max_pixels: int = DataConfig.max_pixels
    """Images of more pixels are broken."""
    pixel_budget: int = field(default=DataConfig.pixel_budget, repr=False, compare=False)
    """Pixels of large images that the processes on a machine decode at the same time."""

    @classmethod
    def of(cls, config: DataConfig) -> Decoding:
        """The settings of a run."""
        return cls(config.bits, config.truncated_jpegs, config.max_pixels, config.pixel_budget)


DEFAULT_DECODING = Decoding()


class EncodedImage(Protocol):
    """An image of which the size is known and the pixels are not decoded yet."""

    width: int
    height: int
    """In pixels, of the upright image."""
    bits: int
    """Of a stored value: 8, 16 or more; fewer than 8 count as 8."""
    largest: int | None
    """The largest stored value, known after `decode`, of integers of 16 bits; None of others."""
    truncated: bool
    """Whether the last bytes are missing, known after `decode`."""

    def cost(self, reduction: float = 1.0) -> int:
        """Memory that `decode` takes, in pixels: one for each pixel of an RGB picture."""

    def decode(self, reduction: float = 1.0) -> tuple[Tensor, float]:
        """Pixels `[C, h, w]` of the upright image, and how many of them there are for one of the original, per side.

        uint8, channels last in memory; or float32 in [0, 1] where the source is deeper. JPEG files may come back
        smaller, at 1/2, 1/4 or 1/8 of their size, never below `1 / reduction`.

        Raises:
            BrokenImage: the pixels cannot be decoded.
        """
