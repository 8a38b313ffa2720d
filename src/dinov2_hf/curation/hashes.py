"""Hashes of images: of the bytes, and of how they look (64 bits of a cosine transform)."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

_SIDE, _LOW = 32, 8
_BITS = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)
_AT_ONCE = 1 << 22
"""Pairs compared at a time."""


def bytes_hash(data: bytes) -> int:
    """64 bits of equal files."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def perceptual_hash(grey: np.ndarray) -> int:
    """64 bits that copies of other sizes and compressions share in the most part, of grey values `[h, w]`.

    A bit says whether a low frequency of the 32 x 32 image is above the median of the 64 lowest.
    """
    from scipy.fft import dctn

    small = Image.fromarray(np.asarray(grey, dtype=np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:_LOW, :_LOW].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness, which would move the median
    return int(np.packbits(bits).view(">u8")[0])


def distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In how many bits hashes (uint64) differ."""
    differing = np.ascontiguousarray(left ^ right)
    return _BITS[differing.view(np.uint8).reshape(*differing.shape, 8)].sum(axis=-1, dtype=np.int64)


def equal_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs `[p, 2]` of rows that connect all rows of equal hashes `[N]`: each with the first one."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    rows = np.flatnonzero(first[which] != np.arange(len(hashes)))
    return np.stack([first[which][rows], rows], axis=1)


def near_pairs(hashes: np.ndarray, max_distance: int, band: int) -> np.ndarray:
    """Pairs `[p, 2]` of rows whose hashes `[N]` differ, in no more than `max_distance` bits, and agree in a band.

    Hashes within a distance `d` agree in one at least of `d + 1` bands of bits, so that the pairs of all bands are
    complete. Of rows with equal hashes the first stands for all.
    """
    unique, first = np.unique(hashes, return_index=True)
    edges = np.linspace(0, 64, max_distance + 2).astype(int)
    low, high = int(edges[band]), int(edges[band + 1])
    key = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=key[order[:1]] + np.uint64(1)))
    found = [np.empty((0, 2), dtype=np.int64)]
    for start, stop in zip(starts, [*starts[1:], len(order)]):
        members = order[start:stop]
        step = max(_AT_ONCE // max(len(members), 1), 1)
        for begin in range(0, len(members) - 1, step):
            part = members[begin : begin + step]
            near = distance(unique[part][:, None], unique[members[begin:]][None]) <= max_distance
            left, right = np.nonzero(np.triu(near, k=1))
            found.append(np.stack([part[left], members[begin:][right]], axis=1))
    return np.sort(first[np.concatenate(found)], axis=1)
