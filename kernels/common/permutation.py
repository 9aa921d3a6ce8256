"""A keyed bijection of [0, size) and its inverse (``sublimate._permutation``), on tiles of indices.

Eight Feistel rounds over the smallest domain 4**half that holds ``size``, repeated until the result
lies below it. A tile walks until its last element has arrived, so an evaluation costs the passes of
the unluckiest one: none beyond the first where size is a power of 4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import philox


def half_bits(size: int) -> int:
    """Bits of half an index of the domain: 4 or more, 4**half >= size."""
    return max(4, ((size - 1).bit_length() + 1) // 2)


@triton.jit
def keys(seed):
    """The keys of the eight rounds: uint32 scalars."""
    at = tl.full((), 0, tl.int64)
    k0, k1, k2, k3 = philox.words(seed, at, philox.PERMUTATION)
    k4, k5, k6, k7 = philox.words(seed, at + 1, philox.PERMUTATION)
    return k0, k1, k2, k3, k4, k5, k6, k7


@triton.jit
def _mix(v, key, mask):
    """Round function: the finaliser of MurmurHash3 on the keyed half."""
    x = v * 0x9E3779B1 + key
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    x ^= x >> 16
    return x & mask


@triton.jit
def _forward(i, half, k):
    mask = (tl.full((), 1, tl.uint32) << half) - 1
    left = i >> half
    right = i & mask
    for r in tl.static_range(8):
        mixed = left ^ _mix(right, k[r], mask)
        left = right
        right = mixed
    return (left << half) | right


@triton.jit
def _backward(i, half, k):
    mask = (tl.full((), 1, tl.uint32) << half) - 1
    left = i >> half
    right = i & mask
    for r in tl.static_range(7, -1, -1):
        mixed = right ^ _mix(left, k[r], mask)
        right = left
        left = mixed
    return (left << half) | right


@triton.jit
def permuted(i, size, half, k):
    """PERM(size)(i): uint32 of i's shape.

    i: uint32 tile, each in [0, size); half: ``half_bits(size)``; k: ``keys(seed)``.
    """
    half = half.to(tl.uint32)
    size = size.to(tl.uint32)
    v = _forward(i, half, k)
    while tl.max((v >= size).to(tl.int32)) > 0:
        v = tl.where(v >= size, _forward(v, half, k), v)
    return v


@triton.jit
def permuted_back(i, size, half, k):
    """The inverse of ``permuted``."""
    half = half.to(tl.uint32)
    size = size.to(tl.uint32)
    v = _backward(i, half, k)
    while tl.max((v >= size).to(tl.int32)) > 0:
        v = tl.where(v >= size, _backward(v, half, k), v)
    return v
