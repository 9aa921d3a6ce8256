"""Codes on tiles of [ROWS, 32]: row = group of 32 elements, column = lane, word = one bit plane."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import round_to

# Longer border tables are walked by a loop instead of being unrolled.
UNROLL = tl.constexpr(64)


@triton.jit
def load_tile(base, n, ROWS: tl.constexpr):
    """Elements ``base[0 : ROWS * 32]`` as [ROWS, 32]; beyond n (scalar, what is left) zero.

    Whole tiles are read without a mask: a mask by an n that is no multiple of the vector width
    would split every load of the launch into single elements.
    """
    at = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    if n >= ROWS * 32:
        v = tl.load(base + at)
    else:
        v = tl.load(base + at, mask=at < n, other=0.0)
    return v


@triton.jit
def store_tile(base, v, n, ROWS: tl.constexpr):
    """Inverse of ``load_tile``; rounds to the element type of ``base``."""
    at = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    v = v.to(base.dtype.element_ty)
    if n >= ROWS * 32:
        tl.store(base + at, v)
    else:
        tl.store(base + at, v, mask=at < n)


@triton.jit
def by_borders(x, borders, codes, M: tl.constexpr, DT: tl.constexpr, ACC: tl.constexpr):
    """Code of the interval of x: ``codes[number of borders with not x <= s]``, int32.

    The borders ascend, so the last one passed decides; NaN passes all. DT: type to which the
    borders are rounded first.
    """
    code = tl.zeros(x.shape, tl.int32) + tl.load(codes).to(tl.int32)
    if M <= UNROLL:
        for j in tl.static_range(M):
            s = round_to(tl.load(borders + j), DT, ACC)
            code = tl.where(x <= s, code, tl.load(codes + j + 1).to(tl.int32))
    else:
        for j in range(M):
            s = round_to(tl.load(borders + j), DT, ACC)
            code = tl.where(x <= s, code, tl.load(codes + j + 1).to(tl.int32))
    return code


@triton.jit
def by_chance(v, u, levels, BITS: tl.constexpr, ACC: tl.constexpr):
    """Code of one of the two levels around v, the upper one with probability (v - lo) / (hi - lo).

    u: uniforms in [0, 1), fp32. As ``searchsorted(levels[1:-1], v, right=True)`` NaN counts every
    level.
    """
    K: tl.constexpr = 2**BITS
    code = tl.zeros(v.shape, tl.int32)
    low = tl.zeros(v.shape, ACC) + tl.load(levels).to(ACC)
    high = tl.zeros(v.shape, ACC) + tl.load(levels + 1).to(ACC)
    if K <= UNROLL:
        for k in tl.static_range(1, K - 1):
            below = ~(v < tl.load(levels + k).to(ACC))
            code = tl.where(below, k, code)
            low = tl.where(below, tl.load(levels + k).to(ACC), low)
            high = tl.where(below, tl.load(levels + k + 1).to(ACC), high)
    else:
        for k in range(1, K - 1):
            below = ~(v < tl.load(levels + k).to(ACC))
            code = tl.where(below, k, code)
            low = tl.where(below, tl.load(levels + k).to(ACC), low)
            high = tl.where(below, tl.load(levels + k + 1).to(ACC), high)
    return code + (u.to(ACC) * (high - low) < v - low).to(tl.int32)


@triton.jit
def pack_tile(packed, code, group, n, BITS: tl.constexpr, ROWS: tl.constexpr):
    """Writes BITS words for each group that starts within the n elements left.

    packed: pointer to the first word; group: scalar int64, first group of the tile.
    """
    row = tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    code = tl.where(row * 32 + lane < n, code, 0)
    # All planes in one tile [ROWS, PLANES]: one change of layout and one coalesced store.
    PLANES: tl.constexpr = 1 if BITS == 1 else 2 if BITS == 2 else 4 if BITS <= 4 else 8
    plane = tl.arange(0, PLANES)[None, :]
    words = tl.zeros([ROWS, PLANES], tl.int32)
    for p in tl.static_range(BITS):
        # Bits are disjoint: their sum is their union, the sign bit included.
        word = tl.sum(((code >> p) & 1) << lane, axis=1, keep_dims=True)
        words = tl.where(plane == p, word, words)
    mask = (row * 32 < n) & (plane < BITS)
    tl.store(packed + group * BITS + (row * BITS + plane), words, mask=mask)


@triton.jit
def unpack_tile(packed, group, n, BITS: tl.constexpr, ROWS: tl.constexpr):
    """Codes of the tile: int32 [ROWS, 32]. One word is read per plane and group."""
    row = tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    code = tl.zeros([ROWS, 32], tl.int32)
    for p in tl.static_range(BITS):
        word = tl.load(packed + group * BITS + (row * BITS + p), mask=row * 32 < n, other=0)
        # In two steps: the first is one shift a thread, the second by a constant.
        code |= (((word >> (lane & 24)) >> (lane & 7)) & 1) << p
    return code


@triton.jit
def _choose4(code, table, ACC: tl.constexpr):
    odd = (code & 1) != 0
    upper = tl.where(odd, tl.load(table + 3).to(ACC), tl.load(table + 2).to(ACC))
    lower = tl.where(odd, tl.load(table + 1).to(ACC), tl.load(table).to(ACC))
    return tl.where((code & 2) != 0, upper, lower)


@triton.jit
def lookup(table, code, BITS: tl.constexpr, ACC: tl.constexpr):
    """``table[code]`` in ACC: selects between scalars up to 3 bits, then a gather (from L1).

    Not a gather throughout: before Triton 3.7 the compiler reads a tile of scattered addresses in
    column order and moves everything around it through shared memory.
    """
    if BITS == 1:
        v = tl.where(code != 0, tl.load(table + 1).to(ACC), tl.load(table).to(ACC))
    elif BITS == 2:
        v = _choose4(code, table, ACC)
    elif BITS == 3:
        v = tl.where((code & 4) != 0, _choose4(code, table + 4, ACC), _choose4(code, table, ACC))
    else:
        v = tl.load(table + code).to(ACC)
    return v


@triton.jit
def row_scale(
    scale,
    start,
    inner,
    n,
    BY_GROUP: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``scale[(start + i) // inner]`` of each element i: [ROWS, 1] if BY_GROUP, else [ROWS, 32].

    One 64-bit division for the tile; the rest counts from there in INDEX. BY_GROUP: inner is a
    multiple of 32, so a group lies in one row.
    """
    first = start // inner
    offset = (start - first * inner).to(INDEX)
    if BY_GROUP:
        at = tl.arange(0, ROWS)[:, None] * 32
    else:
        at = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    row = (offset + at) // inner.to(INDEX)
    return tl.load(scale + first + row, mask=at < n, other=0.0).to(ACC)
