"""Words of the house generator (``sublimate._philox``), from Triton's own Philox.

``tl.philox`` with 32-bit counters is Philox4x32-10 with key (lo32(seed), hi32(seed)). ``tl.rand``
is not used: it draws one counter per element, and its scaling to floats rounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Streams of one seed, as csrc/common/philox.h numbers them.
SIGN = tl.constexpr(1)
PERMUTATION = tl.constexpr(2)
GAUSSIAN = tl.constexpr(3)
RADEMACHER = tl.constexpr(4)


@triton.jit
def words(seed, counter, stream: tl.constexpr = 0):
    """Four uint32 tiles: the output words of int64 ``counter`` (c0, c1 = its halves; c3 = 0).

    seed: scalar int64 >= 0; stream: c2.
    """
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero + stream, zero)


@triton.jit
def choose(w0, w1, w2, w3, lane):
    """Word ``lane`` (in 0..3) of four."""
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def word(seed, index, stream: tl.constexpr = 0):
    """uint32 word of each element index (int64 >= 0, any order): one counter per element."""
    w0, w1, w2, w3 = words(seed, index >> 2, stream)
    return choose(w0, w1, w2, w3, (index & 3).to(tl.int32))


@triton.jit
def interleave(w0, w1, w2, w3, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Words 4 q + w of counters q: [ROWS, COLS] from four tiles of [ROWS, COLS / 4]."""
    # join stacks along a new last axis, so the even words meet first: [.., 2, 2] = w[2 j + k].
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape([ROWS, COLS])


@triton.jit
def signs(seed, n, stream: tl.constexpr = SIGN):
    """float32 +1 or -1 of each element: -1 where bit ``n & 31`` of word ``n >> 5`` is set.

    n: int64 >= 0.
    """
    bit = word(seed, n >> 5, stream) >> (n & 31).to(tl.uint32)
    return 1.0 - 2.0 * (bit & 1).to(tl.int32).to(tl.float32)


@triton.jit
def to_uniform(word):
    """float32 in [0, 1): the upper 24 bits of each uint32 word, exactly."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit
def uniform(seed, index):
    """Uniform of each element index: float32, shape of ``index`` (int64 >= 0, any order)."""
    return to_uniform(word(seed, index))


@triton.jit
def uniform_tile(seed, start, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Uniforms of elements ``start + r * COLS + c``: float32 [ROWS, COLS], one counter per four.

    start: scalar int64, a multiple of 4; COLS too.
    """
    row = tl.arange(0, ROWS)[:, None]
    quad = tl.arange(0, COLS // 4)[None, :]
    counter = (start >> 2) + (row * (COLS // 4) + quad)  # [ROWS, COLS / 4], int64
    w0, w1, w2, w3 = words(seed, counter)
    return to_uniform(interleave(w0, w1, w2, w3, ROWS, COLS))
