"""A keyed bijection of [0, m): random order without a list, in plain torch.

Eight rounds of a Feistel network on the smallest even number of bits that holds m (at least 8), and
cycle walking: the network is applied again while its result is m or more. So any element of the
order, and of its inverse, is found in registers from (seed, m, i) alone.

Round keys are words 0 to 7 of Philox stream 2. Source of the construction: Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002; of the mixer: Appleby, MurmurHash3. The twins
are ``csrc/common/permutation.h`` and ``kernels/common/permutation.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _philox

ROUNDS = 8
STREAM = 2
_MASK = 0xFFFFFFFF


def half_bits(m: int) -> int:
    """Bits of one half of the network: the least h >= 4 with 4**h >= m."""
    h = 4
    while 4**h < m:  # inequalities only: under torch.compile m may be symbolic
        h += 1
    return h


def _multiply(x: Tensor, factor: int) -> Tensor:
    """Low 32 bits of x * factor for x in [0, 2**32); no int64 product overflows."""
    return ((x & 0xFFFF) * factor + ((((x >> 16) * factor) & 0xFFFF) << 16)) & _MASK


def _round(value: Tensor, key: Tensor, mask: int) -> Tensor:
    x = (_multiply(value, 0x9E3779B1) + key) & _MASK
    x = _multiply(x ^ (x >> 16), 0x85EBCA6B)
    x = _multiply(x ^ (x >> 13), 0xC2B2AE35)
    return (x ^ (x >> 16)) & mask


def _keys(seed: int | Tensor, device: torch.device) -> tuple[Tensor, ...]:
    return _philox.words(seed, ROUNDS, device, stream=STREAM).unbind()


def _network(index: Tensor, keys: tuple[Tensor, ...], h: int) -> Tensor:
    mask = 2**h - 1
    left, right = index >> h, index & mask
    for key in keys:
        left, right = right, left ^ _round(right, key, mask)
    return (left << h) | right


def _network_inverse(index: Tensor, keys: tuple[Tensor, ...], h: int) -> Tensor:
    mask = 2**h - 1
    left, right = index >> h, index & mask
    for key in reversed(keys):
        left, right = right ^ _round(left, key, mask), left
    return (left << h) | right


def _check(m: int) -> None:
    if m > 2**31:
        raise ValueError(f"m: expected at most 2**31, got {m}")


def _walk(seed: int | Tensor, m: int, index: Tensor, network) -> Tensor:  # type: ignore[no-untyped-def]
    _check(m)
    h, keys = half_bits(m), _keys(seed, index.device)
    at: Tensor = network(index, keys, h)
    while bool((at >= m).any()):
        at = torch.where(at >= m, network(at, keys, h), at)
    return at


def permute(seed: int | Tensor, m: int, index: Tensor) -> Tensor:
    """Images of ``index`` (int64, each in [0, m), m <= 2**31). O(len(index)) expected."""
    return _walk(seed, m, index, _network)


def unpermute(seed: int | Tensor, m: int, index: Tensor) -> Tensor:
    """Inverse of ``permute``: which indices have these images."""
    return _walk(seed, m, index, _network_inverse)


def permutation(seed: int | Tensor, m: int, device: torch.device | str | None = None) -> Tensor:
    """The whole order: element i is ``permute(seed, m, i)``; int64 (m,).

    Without control flow that depends on data, so that it works under compile, export and vmap: the
    walks of all 4**h <= max(256, 4 m) points at once, doubling their length in each of 2 h steps.
    """
    _check(m)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else torch.device("cpu")
    h, device = half_bits(m), torch.device(device)
    at = _network(torch.arange(4**h, device=device), _keys(seed, device), h)
    for _ in range(2 * h):
        at = torch.where(at >= m, at[at], at)
    return at[:m]
