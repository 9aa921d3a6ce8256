"""Kernels on clusters: their sums, what a move gains, and the moves themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import NONE, row_best


@triton.jit(do_not_specialize=["clusters"])
def contract_kernel(
    x_ptr,  # (n, d) fp32 or fp64
    w_ptr,  # (n,) of the same, or None
    members_ptr,  # (n,) int64: nodes by label, then in order
    starts_ptr,  # (clusters + 1,) int64 into members
    sums_ptr,  # (clusters, d) fp64
    masses_ptr,  # (clusters,) fp64
    counts_ptr,  # (clusters,) int64
    d,
    clusters,
    BK: tl.constexpr,
):
    """Sums of a cluster's members, added in order, in fp64; BK coordinates a program."""
    c = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    begin, end = tl.load(starts_ptr + c), tl.load(starts_ptr + c + 1)
    total = tl.zeros([BK], tl.float64)
    mass = tl.zeros([1], tl.float64)
    for p in range(begin, end):
        i = tl.load(members_ptr + p)
        total += tl.load(x_ptr + i * d + k, mask=k < d, other=0.0).to(tl.float64)
        if w_ptr is not None:
            mass += tl.load(w_ptr + i + tl.arange(0, 1)).to(tl.float64)
    tl.store(sums_ptr + c * d + k, total, mask=k < d)
    if tl.program_id(1) == 0:
        if w_ptr is None:
            mass += (end - begin).to(tl.float64)
        tl.store(masses_ptr + c + tl.arange(0, 1), mass)
        tl.store(counts_ptr + c, end - begin)


@triton.jit(do_not_specialize=["n"])
def gain_kernel(
    x_ptr,  # (n, d)
    w_ptr,  # (n,), or None
    labels_ptr,  # (n,) int64 slots
    sums_ptr,  # (slots, d) fp64
    masses_ptr,  # (slots,) fp64
    counts_ptr,  # (slots,) int64
    alpha_ptr,  # () fp64
    partial_ptr,  # (n, COUNT) ACC: best other slot of each share
    candidate_ptr,  # (n, COUNT) int32
    target_ptr,  # (n,) int64
    gain_ptr,  # (n,) ACC
    n,
    d,
    q,  # negative coordinates
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """The best other slot of each node, and its value less what the rest of its own is worth."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    here = tl.minimum(rows, tl.zeros_like(rows) + n - 1)
    slot = tl.arange(0, ROOM)[None, :]
    at = here[:, None] * COUNT + slot
    index = tl.load(candidate_ptr + at, mask=slot < COUNT, other=NONE)
    value = tl.load(partial_ptr + at, mask=slot < COUNT, other=float("-inf"))
    top, best = row_best(value, index)
    own = tl.load(labels_ptr + here)
    total = tl.zeros([BM, BK], tl.float64)
    for first in range(0, d, BK):
        inner = (first + tl.arange(0, BK))[None, :]
        x = tl.load(x_ptr + here[:, None] * d + inner, mask=inner < d, other=0.0).to(tl.float64)
        rest = tl.load(sums_ptr + own[:, None] * d + inner, mask=inner < d, other=0.0) - x
        total += tl.where(inner < d - q, x * rest, -x * rest)
    w = tl.full([BM], 1.0, tl.float64)
    if w_ptr is not None:
        w = tl.load(w_ptr + here).to(tl.float64)
    stay = tl.sum(total, axis=1) - tl.load(alpha_ptr) * w * (tl.load(masses_ptr + own) - w)
    stay = tl.where(tl.load(counts_ptr + own) == 1, 0.0, stay)
    found = best != NONE
    gain = tl.where(found, (top.to(tl.float64) - stay).to(ACC), float("-inf"))
    tl.store(target_ptr + rows, tl.where(found, best, -1).to(tl.int64), mask=rows < n)
    tl.store(gain_ptr + rows, gain, mask=rows < n)


@triton.jit
def _lowest_empty(counts_ptr, hint, end, BLOCK: tl.constexpr):
    """Lowest slot from ``hint`` on, below ``end``, that is empty, or ``end``."""
    found = end
    while (hint < end) & (found == end):
        at = hint + tl.arange(0, BLOCK)
        count = tl.load(counts_ptr + at, mask=at < end, other=1)
        found = tl.min(tl.where(count == 0, at, end), axis=0)
        hint += BLOCK
    return found


@triton.jit
def move_kernel(
    x_ptr,  # (n, d)
    w_ptr,  # (n,), or None
    labels_ptr,  # (n,) int64, changed
    sums_ptr,  # (slots, d) fp64, changed
    masses_ptr,  # (slots,) fp64, changed
    counts_ptr,  # (slots,) int64, changed
    slot_offsets_ptr,  # (instances + 1,) int64
    order_ptr,  # (count,) int64
    order_offsets_ptr,  # (instances + 1,) int64
    target_ptr,  # (n,) int64
    alpha_ptr,  # () fp64
    moved_ptr,  # (instances,) int64
    d,
    q,
    BK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One instance's moves, one after the other, re-checked in fp64 (csrc/multicut/kernels.h)."""
    b = tl.program_id(0)
    first_step, last_step = tl.load(order_offsets_ptr + b), tl.load(order_offsets_ptr + b + 1)
    hint, end = tl.load(slot_offsets_ptr + b), tl.load(slot_offsets_ptr + b + 1)
    alpha = tl.load(alpha_ptr)
    moved = tl.zeros_like(hint)
    for step in range(first_step, last_step):
        i = tl.load(order_ptr + step)
        c = tl.load(labels_ptr + i)
        t = tl.load(target_ptr + i)
        w = tl.zeros_like(alpha) + 1.0
        if w_ptr is not None:
            w = tl.load(w_ptr + i).to(tl.float64)
        attract = tl.zeros([BK], tl.float64)
        keep = tl.zeros([BK], tl.float64)
        for first in range(0, d, BK):
            k = first + tl.arange(0, BK)
            x = tl.load(x_ptr + i * d + k, mask=k < d, other=0.0).to(tl.float64)
            signed = tl.where(k < d - q, x, -x)
            attract += signed * tl.load(sums_ptr + t * d + k, mask=k < d, other=0.0)
            keep += signed * (tl.load(sums_ptr + c * d + k, mask=k < d, other=0.0) - x)
        there = tl.sum(attract, axis=0) - alpha * w * tl.load(masses_ptr + t)
        stay = tl.sum(keep, axis=0) - alpha * w * (tl.load(masses_ptr + c) - w)
        alone = tl.load(counts_ptr + c) == 1
        stay = tl.where(alone, 0.0, stay)
        room = True
        if (there < 0) & (tl.load(counts_ptr + t) > 0):
            t = _lowest_empty(counts_ptr, hint, end, BLOCK)
            hint = t
            room = t < end
            there = tl.zeros_like(there)
        if room:
            empty = tl.load(counts_ptr + t) == 0
            better = there - stay > 1e-10 * (tl.abs(there) + tl.abs(stay))
            # Read by all before it is written by some.
            tl.debug_barrier()
            if better & (t != c) & ~(alone & empty):
                for first in range(0, d, BK):
                    k = first + tl.arange(0, BK)
                    x = tl.load(x_ptr + i * d + k, mask=k < d, other=0.0).to(tl.float64)
                    old = tl.load(sums_ptr + c * d + k, mask=k < d, other=0.0)
                    new = tl.load(sums_ptr + t * d + k, mask=k < d, other=0.0)
                    tl.store(sums_ptr + c * d + k, tl.where(alone, 0.0, old - x), mask=k < d)
                    tl.store(sums_ptr + t * d + k, new + x, mask=k < d)
                old_mass = tl.load(masses_ptr + c)
                new_mass = tl.load(masses_ptr + t)
                old_count = tl.load(counts_ptr + c)
                new_count = tl.load(counts_ptr + t)
                tl.debug_barrier()
                tl.store(masses_ptr + c, tl.where(alone, 0.0, old_mass - w))
                tl.store(masses_ptr + t, new_mass + w)
                tl.store(counts_ptr + c, old_count - 1)
                tl.store(counts_ptr + t, new_count + 1)
                tl.store(labels_ptr + i, t)
                hint = tl.where(alone, tl.minimum(hint, c), hint)
                moved += 1
            tl.debug_barrier()
    tl.store(moved_ptr + b, moved)
