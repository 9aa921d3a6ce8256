"""Kronecker attention in plain PyTorch: what every kernel is held to.

A query attends to pairs of keys (order 3), or to k - 1 keys (order k), one from each key set:

    X[i, j1, ..., j_{k-1}] = scale sum_a q[i, a] keys_1[j1, a] ... keys_{k-1}[j_{k-1}, a]
    O[i] = sum P[i, ...] values_1[j1] * ... * values_{k-1}[j_{k-1}],  P = softmax over all tuples

Shapes: q (B, Hq, N, D); each key set (B, Hkv, M, D) with its value set (B, Hkv, M, Dv); Hq = G Hkv
and query head h reads key head h // G. Masks are separable: a tuple counts if each of its members
is allowed, by a key-padding mask (B, M), by causality (j <= i) and by a window (i - w < j <= i). A
row with nothing allowed gives 0. Computed in fp32 (fp64 for fp64) and rounded once; differentiable
any number of times. Source: Alman and Song, "How to Capture Higher-order Correlations?" (arXiv
2310.04064); its polynomial method in the minimal form of this folder's README.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._autograd import without_autocast
from .._dtypes import accumulator

#: Elements of the largest intermediate of one chunk of rows, over all batches and heads.
CHUNK = 2**24

Masks = Sequence[Tensor | None]


# ------------------------------------------------------------------------------------------ masks


def allowed(
    rows: tuple[int, int],
    columns: tuple[int, int],
    mask: Tensor | None,
    causal: bool,
    window: int,
    device: torch.device,
) -> Tensor | None:
    """Which keys of ``columns`` the queries of ``rows`` may read, (B or 1, rows, columns) bool.

    Args:
        mask: (B, M) bool, True where a key may be read. window: 0 for none; a window is causal.

    None if all of them.
    """
    found = None if mask is None else mask[:, None, columns[0] : columns[1]]
    if causal or window:
        i = torch.arange(*rows, device=device)[:, None]
        j = torch.arange(*columns, device=device)[None, :]
        near = j <= i
        if window:
            near = near & (j > i - window)
        found = near[None] if found is None else found & near[None]
    return found


def _clean(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, H, M, D) with 0 at masked keys, so that whatever is there (NaN) reaches nothing."""
    return x if mask is None else torch.where(mask[:, None, :, None], x, torch.zeros_like(x))


def window_widths(window: Sequence[int] | None, keys: int) -> tuple[int, ...]:
    return tuple(window) if window else (0,) * keys


def _row_chunks(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows; one, empty, of nothing, so that an empty result still has a graph."""
    for start in range(0, max(1, n), size):
        yield start, min(n, start + size)


# --------------------------------------------------------------------------------- exact, any order


def fold(q: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """(B, Hkv, G, R, M_1, ..., M_last): unmasked logits; q (B, Hkv, G, R, D) is scaled already."""
    folded, sizes = q, tuple(q.shape[2:4])
    for k in keys[:-1]:
        b, h, m, d = k.shape
        left = folded.reshape(b, h, math.prod(sizes), 1, d)
        folded, sizes = left * k.unsqueeze(2), (*sizes, m)
    last = keys[-1]
    b, h, m, d = last.shape
    flat = folded.reshape(b, h, math.prod(sizes), d)
    return (flat @ last.transpose(-1, -2)).reshape(b, h, *sizes, m)


def contract(weight: Tensor, values: Sequence[Tensor]) -> Tensor:
    """(B, Hkv, G, R, Dv): sums of weight times the product of one value of each set."""
    b, h, g, r, *lengths = weight.shape
    rows = g * r * math.prod(lengths[:-1])
    out = weight.reshape(b, h, rows, lengths[-1]) @ values[-1]  # [B, Hkv, G R M_1 ..., Dv]
    for v in reversed(values[:-1]):
        rows = rows // max(1, v.shape[2]) if v.shape[2] else g * r
        out = (out.reshape(b, h, rows, *v.shape[2:]) * v.unsqueeze(2)).sum(-2)
    return out.reshape(b, h, g, r, out.shape[-1])


def mask_logits(logits: Tensor, allow: Sequence[Tensor | None]) -> Tensor:
    for at, a in enumerate(allow):
        if a is not None:
            shape = [a.shape[0], 1, 1, a.shape[1], *(1,) * len(allow)]
            shape[4 + at] = a.shape[2]
            logits = torch.where(a.reshape(shape), logits, -math.inf)
    return logits


def softmax_pairs(logits: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """(P, LSE) of logits over the last ``dims`` dimensions; rows of -inf give P = 0, LSE = -inf."""
    flat = logits.flatten(-dims)
    top = flat.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, torch.zeros_like(top), top)
    weight = torch.exp(flat - top)
    total = weight.sum(-1, keepdim=True)
    empty = total == 0
    safe = torch.where(empty, torch.ones_like(total), total)
    lse = torch.where(empty, torch.full_like(total, -math.inf), safe.log() + top).squeeze(-1)
    return (weight / safe).reshape(logits.shape), lse


def prepare(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], masks: Masks | None
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor | None]]:
    """q by key heads (B, Hkv, G, N, D), all in the accumulator's dtype, masked keys 0."""
    acc = accumulator(q.dtype)
    masks = list(masks) if masks else [None] * len(keys)
    b, hq, n, d = q.shape
    hkv = keys[0].shape[1]
    grouped = q.to(acc).reshape(b, hkv, hq // hkv, n, d)
    keys = [_clean(k.to(acc), m) for k, m in zip(keys, masks, strict=True)]
    values = [_clean(v.to(acc), m) for v, m in zip(values, masks, strict=True)]
    return grouped, keys, values, masks


def layout_like(q: Tensor, x: Tensor) -> Tensor:
    """x (B, Hq, N, ...) laid out in memory as q's first three dimensions are."""
    order = sorted(range(3), key=lambda dim: q.stride()[dim], reverse=True)
    if order == [0, 1, 2]:
        return x.contiguous()
    order = [*order, *range(3, x.dim())]
    back = [order.index(dim) for dim in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def _softmax_rows(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Masks | None,
    scale: float,
    causal: bool,
    window: Sequence[int] | None,
    logits_of: Callable[[Tensor, Sequence[Tensor]], Tensor],
) -> tuple[Tensor, Tensor]:
    """(O, LSE) a chunk of rows at a time; ``logits_of`` the scaled queries and the key sets."""
    with without_autocast(q.device):
        grouped, key_sets, value_sets, masks = prepare(q, keys, values, masks)
        windows = window_widths(window, len(keys))
        b, hkv, g, n, d = grouped.shape
        lengths, dv = [k.shape[2] for k in keys], values[0].shape[-1]
        per_row = b * hkv * g * math.prod(lengths[:-1]) * max(lengths[-1], d, dv)
        outs, lses = [], []
        for rows in _row_chunks(n, max(1, CHUNK // max(1, per_row))):
            allow = [
                allowed(rows, (0, m), mask, causal, w, q.device)
                for m, mask, w in zip(lengths, masks, windows, strict=True)
            ]
            part = grouped[:, :, :, rows[0] : rows[1]] * scale
            logits = mask_logits(logits_of(part, key_sets), allow)
            if 0 in lengths:  # nothing to take a maximum of
                outs.append(contract(logits, value_sets))
                lses.append(logits.new_full(logits.shape[:4], -math.inf))
                continue
            p, lse = softmax_pairs(logits, len(keys))
            outs.append(contract(p, value_sets))
            lses.append(lse)
        lse = torch.cat(lses, 3)
        out = torch.cat(outs, 3).reshape(b, hkv * g, n, dv).to(q.dtype)
        return layout_like(q, out), lse.reshape(b, hkv * g, n)


def attention_any_order(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Masks | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE) exactly, for any order >= 2; a chunk of rows at a time.

    Time 4 N M_1 ... M_{k-1} D Hq; without a gradient, memory is bounded by ``CHUNK`` elements or
    one row of tuples. O (B, Hq, N, Dv) in q's dtype, LSE (B, Hq, N) in the accumulator's.
    """
    return _softmax_rows(q, keys, values, masks, scale, causal, window, fold)


def attention(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """``attention_any_order`` of order 3: (O, LSE)."""
    return attention_any_order(
        q, (k1, k2), (v1, v2), (mask1, mask2), scale=scale, causal=causal, window=window
    )


def attention_gradients(
    dout: Tensor,
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk1, dk2, dv1, dv2) in closed form, by chunks of rows: what the backward kernels do.

    Args:
        dout: (B, Hq, N, Dv). lse, delta: (B, Hq, N); delta = rowsum(dout * out) - dlse.

    P = exp(X - LSE); dP[i, j, k] = dout_i . (v1_j * v2_k); dS = P (dP - delta). With T_ij =
    sum_k dS k2_k: dq_i = scale sum_j k1_j * T_ij and dk1_j = scale sum_i q_i * T_ij.
    """
    acc = accumulator(q.dtype)
    grouped, (k1_, k2_), (v1_, v2_), masks = prepare(q, (k1, k2), (v1, v2), (mask1, mask2))
    windows = window_widths(window, 2)
    b, hkv, g, n, d = grouped.shape
    m1, m2, dv = k1.shape[2], k2.shape[2], v1.shape[-1]
    do = dout.to(acc).reshape(b, hkv, g, n, dv)
    lse, delta = (t.to(acc).reshape(b, hkv, g, n, 1, 1) for t in (lse, delta))
    lse = torch.where(lse == -math.inf, torch.zeros_like(lse), lse)
    dq = torch.empty_like(grouped)
    dk1, dk2, dv1, dv2 = (torch.zeros_like(t) for t in (k1_, k2_, v1_, v2_))
    per_row = b * hkv * g * m1 * max(m2, d, dv)
    for lo, hi in _row_chunks(n, max(1, CHUNK // max(1, per_row))):
        allow = [
            allowed((lo, hi), (0, m), mask, causal, w, q.device)
            for m, mask, w in zip((m1, m2), masks, windows, strict=True)
        ]
        qc, doc = grouped[:, :, :, lo:hi], do[:, :, :, lo:hi]
        p = torch.exp(mask_logits(fold(qc * scale, (k1_, k2_)), allow) - lse[:, :, :, lo:hi])
        ds = p * (fold(doc, (v1_, v2_)) - delta[:, :, :, lo:hi])
        ds = torch.where(p == 0, torch.zeros_like(ds), ds) * scale
        count = g * (hi - lo) * m1
        flat_p, flat_s = (t.reshape(b, hkv, count, m2) for t in (p, ds))
        w = (flat_p @ v2_).reshape(b, hkv, g, hi - lo, m1, dv)
        t = (flat_s @ k2_).reshape(b, hkv, g, hi - lo, m1, d)
        dq[:, :, :, lo:hi] = (t * k1_[:, :, None, None]).sum(-2)
        dk1 += (t * qc.unsqueeze(-2)).sum((2, 3))
        dv1 += (w * doc.unsqueeze(-2)).sum((2, 3))
        fold_k = (qc.unsqueeze(-2) * k1_[:, :, None, None]).reshape(b, hkv, count, d)
        fold_v = (doc.unsqueeze(-2) * v1_[:, :, None, None]).reshape(b, hkv, count, dv)
        dk2 += flat_s.transpose(-1, -2) @ fold_k
        dv2 += flat_p.transpose(-1, -2) @ fold_v
    if n == 0:
        dq = torch.zeros_like(dq)
    dk1, dk2, dv1, dv2 = (
        _clean(t, m).to(q.dtype)
        for t, m in zip((dk1, dk2, dv1, dv2), (mask1, mask2) * 2, strict=True)
    )
    return dq.reshape(q.shape).to(q.dtype), dk1, dk2, dv1, dv2


# ------------------------------------------------------------------------------- Strassen's logits


def strassen(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(O, LSE) with the logits scale (q_i . k1_j + k1_j . k2_k + k2_k . q_i).

    The logits of a chunk of rows are formed in full: O(N M1 M2 Dv) time, ``CHUNK`` elements.
    """

    def logits_of(part: Tensor, keys: Sequence[Tensor]) -> Tensor:
        first, second = keys
        b, h, g, r, _ = part.shape
        flat = part.flatten(2, 3)
        near = (flat @ first.transpose(-1, -2)).reshape(b, h, g, r, first.shape[2], 1)
        far = (flat @ second.transpose(-1, -2)).reshape(b, h, g, r, 1, second.shape[2])
        middle = first @ second.transpose(-1, -2)
        return near + far + middle[:, :, None, None] * scale

    return _softmax_rows(q, (k1, k2), (v1, v2), (mask1, mask2), scale, causal, window, logits_of)


# ---------------------------------------------------------------------------- polynomial, factored


def rank(dim: int, degree: int) -> int:
    """Number of monomials of degree <= g in d variables, C(d + g, g): features of a factor."""
    return math.comb(dim + degree, degree)


@torch.compiler.assume_constant_result
def _tree(dim: int, degree: int) -> Any:
    return _cached_tree(dim, degree)  # Dynamo takes the result and traces nothing


@functools.cache
def _cached_tree(dim: int, degree: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """For each degree from 1 on: the parent of each monomial among those one degree lower, and the
    variable that it is multiplied by, not before the parent's last."""
    levels, lasts = [], [0]
    for _ in range(degree):
        pairs = [(p, a) for p, last in enumerate(lasts) for a in range(last, dim)]
        levels.append((tuple(p for p, _ in pairs), tuple(a for _, a in pairs)))
        lasts = [a for _, a in pairs]
    return tuple(levels)


def monomials(x: Tensor, degree: int) -> Tensor:
    """(..., d) -> (..., r): x^alpha for all |alpha| <= degree, by degree and then lexically."""
    found, level = [torch.ones_like(x[..., :1])], x
    for at, (parents, variables) in enumerate(_tree(x.shape[-1], degree)):
        if at > 0:  # the first level is x itself
            # Not index_select, whose backward Inductor (torch 2.13, CPU) compiles to writes out of
            # bounds.
            where = torch.tensor((parents, variables), device=x.device)
            where = where.expand(*x.shape[:-1], -1, -1)
            level = level.gather(-1, where[..., 0, :]) * x.gather(-1, where[..., 1, :])
        found.append(level)
    return torch.cat(found, -1)


@torch.compiler.assume_constant_result
def _multinomial_list(dim: int, degree: int) -> Any:
    return _cached_multinomials(dim, degree)


@functools.cache
def _cached_multinomials(dim: int, degree: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    weights, degrees = [], []
    for j in range(degree + 1):
        for alpha in itertools.combinations_with_replacement(range(dim), j):
            weight = math.factorial(j)
            for _, run in itertools.groupby(alpha):
                weight //= math.factorial(len(list(run)))
            weights.append(float(weight))
            degrees.append(j)
    return tuple(weights), tuple(degrees)


def multinomials(dim: int, degree: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(|alpha|! / alpha!, |alpha|) of each monomial, in the order of ``monomials``."""
    weights, degrees = _multinomial_list(dim, degree)
    return like.new_tensor(weights), torch.tensor(degrees, device=like.device)


def polynomial(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Masks | None,
    coefficients: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over tuples of p(X) times values, and of p(X): numerator and denominator.

    p(x) = sum_j c_j x^j of the scaled logit, by the exact expansion in monomials

        p(X) = sum_alpha c_|alpha| scale^|alpha| (|alpha|! / alpha!) q^alpha k_1^alpha k_2^alpha ...

    so that each key set enters through r x (Dv + 1) sums, r = C(D + g, g) whatever the order.

    Args:
        coefficients: (B, Hq, g + 1) in the accumulator's dtype.

    Returns:
        (B, Hq, N, Dv) and (B, Hq, N) in the accumulator's dtype. Time 2 k N r Dv Hq without
        causality; with it, here, 16 times as much.
    """
    degree = coefficients.shape[-1] - 1
    with without_autocast(q.device):
        grouped, key_sets, value_sets, masks = prepare(q, keys, values, masks)
        windows = window_widths(window, len(keys))
        _, hkv, g, n, d = grouped.shape
        weights, degrees = multinomials(d, degree, grouped)
        powers = scale ** degrees.to(grouped.dtype)
        c = coefficients.to(grouped.dtype).unflatten(1, (hkv, g)).unsqueeze(3)[..., degrees]
        features = monomials(grouped, degree) * (c * (weights * powers))  # [B, Hkv, G, N, r]
        factors = [monomials(k, degree) for k in key_sets]
        # Masked keys are 0, but their monomial of degree 0 is 1.
        factors = [_clean(f, m) for f, m in zip(factors, masks, strict=True)]
        ones = [torch.cat((v, torch.ones_like(v[..., :1])), -1) for v in value_sets]
        if not causal and not any(windows):
            sums = grouped.new_ones(())
            for f, v in zip(factors, ones, strict=True):
                sums = sums * (f.transpose(-1, -2) @ v)  # [B, Hkv, r, Dv + 1]
            both = (features.flatten(2, 3) @ sums).unflatten(2, (g, n))
        else:
            both = _ordered(features, factors, ones, causal, windows)
        both = both.flatten(1, 2)
        return both[..., :-1].contiguous(), both[..., -1].contiguous()


def _ordered(
    features: Tensor,
    factors: Sequence[Tensor],
    ones: Sequence[Tensor],
    causal: bool,
    windows: Sequence[int],
    chunk: int = 16,
) -> Tensor:
    """Rows see prefixes: sums carried from chunk to chunk, and masked sums within one.

    With a window the keys of a chunk's rows are summed afresh: a difference of two long prefixes
    would cancel. A set under neither is summed once. ``ones``: values with a column of 1.
    """
    b, hkv, _, n, r = features.shape
    zero = features.new_zeros(b, hkv, 1, r, ones[0].shape[-1])
    carried = [
        zero if causal or w else (f.transpose(-1, -2) @ v).unsqueeze(2)
        for f, v, w in zip(factors, ones, windows, strict=True)
    ]
    outs = []
    for lo, hi in _row_chunks(n, chunk):
        product = features.new_ones(())
        for at, (f, v, w) in enumerate(zip(factors, ones, windows, strict=True)):
            state = carried[at]
            if causal or w:
                m = f.shape[2]
                first, last = min(max(0, lo - w + 1) if w else lo, m), min(hi, m)
                seen = allowed((lo, hi), (first, last), None, True, w, f.device)
                assert seen is not None
                here, there = f[:, :, first:last], v[:, :, first:last]
                near = torch.einsum("ij,bhjr,bhjv->bhirv", seen[0].to(f.dtype), here, there)
                if not w:
                    carried[at] = state + (here.transpose(-1, -2) @ there).unsqueeze(2)
                    near = state + near
                state = near
            product = product * state
        outs.append(
            torch.einsum(
                "bhgir,bhirv->bhgiv",
                features[:, :, :, lo:hi],
                product.expand(b, hkv, hi - lo, r, -1),
            )
        )
    return torch.cat(outs, 3)


def divide(numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
    """numerator / denominator, 0 where no tuple was allowed (both are 0), in ``dtype``."""
    empty = (denominator == 0) & (numerator == 0).all(-1)
    safe = torch.where(empty, torch.ones_like(denominator), denominator)
    return (numerator / safe.unsqueeze(-1)).to(dtype)
