"""Philox4x32-10 in plain torch: the one random generator of every backend.

Counter based: word ``i & 3`` of counter ``i >> 2`` of a stream under key ``seed`` is a pure
function of (seed, stream, i), so nothing random is ever stored and every backend draws the same
bits. Independent uses of one seed take different streams: 0 uniforms of stochastic codes; 1 signs,
2 keys of permutations, 3 normal numbers, 4 signs of dense sketches, 5 draws of row samplers
(all of ``randomized_linear``), 6 hashes that seeds are made of.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
The twins are ``csrc/common/philox.h`` and ``kernels/common/philox.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio, sqrt(3) - 1


def _mulhilo(m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32-bit words of m * x in halves of 16 bits: no int64 product overflows."""
    low = m * (x & 0xFFFF)
    high = m * (x >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    c0: Tensor,
    c1: Tensor,
    c2: Tensor,
    c3: Tensor,
    k0: int | Tensor,
    k1: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        c0, c1, c2, c3: counter words, int64 tensors of mutually broadcastable shapes, each in
            [0, 2**32).
        k0, k1: key words, in [0, 2**32): Python integers or int64 tensors.

    Returns:
        Four int64 tensors in [0, 2**32). O(1) work per counter.
    """
    for _ in range(_ROUNDS):
        high0, low0 = _mulhilo(_M0, c0)
        high1, low1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _quads(seed: int | Tensor, counter: Tensor, stream: int) -> Tensor:
    """Output words of each 64-bit counter: shape of ``counter`` plus a last axis of 4."""
    zero = torch.zeros_like(counter)
    key = seed & _MASK, (seed >> 32) & _MASK
    words = philox4x32(counter & _MASK, (counter >> 32) & _MASK, zero + stream, zero, *key)
    return torch.stack(words, dim=-1)


def _check(seed: int | Tensor, index: int | Tensor) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                "seed: expected one int64 value, got a tensor of "
                f"dtype {seed.dtype} and shape {tuple(seed.shape)}"
            )
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or an int64 tensor, got {type(seed).__name__}")
    elif not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected a value in [0, 2**63), got {seed}")
    if isinstance(index, Tensor):
        if index.dtype != torch.int64:
            raise TypeError(f"index: expected an int64 tensor, got dtype {index.dtype}")
    elif isinstance(index, bool) or not isinstance(index, (int, torch.SymInt)):
        raise TypeError(f"index: expected an int or an int64 tensor, got {type(index).__name__}")
    elif index < 0:
        raise ValueError(f"index: expected a count >= 0, got {index}")


def words(
    seed: int | Tensor,
    index: int | Tensor,
    device: torch.device | str | None = None,
    *,
    stream: int = 0,
) -> Tensor:
    """Random words: element i is output word i & 3 of counter (lo32(i >> 2), hi32(i >> 2), stream,
    0) under key (lo32(seed), hi32(seed)).

    Args:
        seed: int64 >= 0, a Python integer or a one-element int64 tensor (not read on the host).
        index: how many elements to draw (0 .. n - 1), or an int64 tensor of element indices >= 0.
        device: where to draw; default the device of ``index``, else of ``seed``, else the CPU.
        stream: one of those named in the module's docstring.

    Returns:
        (n,) or the shape of ``index``, int64 in [0, 2**32). O(n); a count costs a quarter of the
        rounds that an index tensor of the same size costs.

    Raises:
        TypeError: seed or index of another type or dtype.
        ValueError: seed outside [0, 2**63), of several elements, or a negative count.
    """
    _check(seed, index)
    if device is None:
        owner = next((t for t in (index, seed) if isinstance(t, Tensor)), None)
        device = torch.device("cpu") if owner is None else owner.device
    if isinstance(seed, Tensor):
        seed = seed.reshape(()).to(device)
    if isinstance(index, Tensor):
        index = index.to(device)
        lane = (index & 3).unsqueeze(-1)
        return _quads(seed, index >> 2, stream).gather(-1, lane).squeeze(-1)
    counter = torch.arange((index + 3) // 4, dtype=torch.int64, device=device)
    return _quads(seed, counter, stream).reshape(-1)[:index]


def uniform(
    seed: int | Tensor,
    index: int | Tensor,
    device: torch.device | str | None = None,
    *,
    stream: int = 0,
) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2**-24: ``(word >> 8) * 2**-24``.

    Arguments, cost and errors are those of ``words``; (n,) or the shape of ``index``, float32.
    """
    word = words(seed, index, device, stream=stream)
    return (word >> 8).to(torch.float32) * 2.0**-24
