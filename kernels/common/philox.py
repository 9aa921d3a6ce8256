"""Uniform numbers of the house generator (``sublimate._philox``), from Triton's own Philox.

``tl.philox`` with 32-bit counters is Philox4x32-10 with key (lo32(seed), hi32(seed)). ``tl.rand``
is not used: it draws one counter per element, and its scaling to floats rounds.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def words(seed, counter):
    """Four uint32 tiles: the output words of int64 ``counter`` (c0, c1 = its halves; c2 = c3 = 0).

    seed: scalar int64 >= 0.
    """
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def to_uniform(word):
    """float32 in [0, 1): the upper 24 bits of each uint32 word, exactly."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit
def uniform(seed, index):
    """Uniform of each element index: float32, shape of ``index`` (int64 >= 0, any order)."""
    w0, w1, w2, w3 = words(seed, index >> 2)
    lane = (index & 3).to(tl.int32)
    word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    return to_uniform(word)


@triton.jit
def uniform_tile(seed, start, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Uniforms of elements ``start + r * COLS + c``: float32 [ROWS, COLS], one counter per four.

    start: scalar int64, a multiple of 4; COLS too.
    """
    row = tl.arange(0, ROWS)[:, None]
    quad = tl.arange(0, COLS // 4)[None, :]
    counter = (start >> 2) + (row * (COLS // 4) + quad)  # [ROWS, COLS / 4], int64
    w0, w1, w2, w3 = words(seed, counter)
    # join stacks along a new last axis, so the even words meet first: [.., 2, 2] = w[2 j + k].
    word = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return to_uniform(word.reshape([ROWS, COLS]))
