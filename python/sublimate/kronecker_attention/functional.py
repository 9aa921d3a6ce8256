"""Attention over pairs of keys: exact, polynomial, or whichever a tolerance allows.

O[i] = sum_jk P[i, j, k] v1[j] * v2[k], P = softmax over the allowed pairs (j, k) of
X[i, j, k] = scale sum_a q[i, a] k1[j, a] k2[k, a]. Source: Alman and Song, "How to Capture
Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker Computation" (arXiv
2310.04064). The mathematics, every gradient, accuracy and speed are in this folder's README.

Shared by the functions here:

Args:
    q: (B, Hq, N, D). Keys (B, Hkv, M, D) and values (B, Hkv, M, Dv), each set of its own length;
        Hq is a multiple of Hkv and query head h reads key head h // (Hq / Hkv). Any strides:
        (B, N, H, D) by ``transpose(1, 2)`` is read without a copy. float32, float16, bfloat16 or
        float64, all alike; under autocast they are cast to its dtype, as in torch.
    scale: of the logits; None for 1 / sqrt(D). The paper's is 1 / D.
    causal: row i reads j <= i and k <= i.
    window: a width for each key set, 0 for none: i - w < j <= i.
    mask1, mask2 (masks): (B, M) bool, True where a key is read; None for all.
    backend: "auto", "reference", "cpu" or "triton"; None takes the process-wide setting.

Returns:
    O, (B, Hq, N, Dv) in q's dtype and memory layout. Rows with nothing to read are 0, and their
    LSE -inf; all their gradients are 0.

Raises:
    TypeError, ValueError: a bad argument; raised before anything runs.
    BackendUnavailable: the named backend cannot run this call.

Sums are fp32 (fp64 for fp64). Compiled backends refuse second and forward-mode derivatives and
vmap; the reference does all three. Coefficients are constants to autograd, those fitted to the
logits ("hermite") too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks
from . import arguments, methods, ops, plan
from .methods import FAMILY
from .plan import Plan

# --------------------------------------------------------------------------------- public functions


def kronecker_attention(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    method: str = "auto",
    degree: int | None = None,
    coefficients: str = "taylor",
    tol: float | None = None,
    return_lse: bool = False,
    return_info: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention over pairs of keys, one of each of two key sets.

    Args:
        method: "exact": 2 (D + Dv) N M1 M2 FLOPs a head. "polynomial": 6 N C(D + g, g) Dv, for
            logits of magnitude about 1 and less. "hybrid": exact inside ``window``, polynomial for
            all other pairs that causality allows (``causal=True`` must be given). "auto": the
            cheapest within ``tol``, exact without one.
        degree: g of the polynomial, 1 to 16; None: the smallest within ``tol``, or 2 without one.
            Odd degrees are refused where a logit may lie beyond their root.
        coefficients: "taylor", or "hermite", fitted to the second moment of the logits: more
            accurate from degree 2 on, at no cost.
        tol: relative error of the output that is tolerated, by the certified bound or by 3 times
            an estimate from rows evaluated exactly. Choosing reads the data on the host; under
            torch.compile, call ``choose`` before and give ``method`` and ``degree``.
        return_lse: also return LSE (B, Hq, N), log of the sum of exp(X) over the row's pairs, in
            fp32 (fp64 for fp64); the polynomial method's is the log of its denominator, with
            Hermite's common factor left out. Differentiable.
        return_info: also return the ``Plan``: what ran, and why.

    Returns:
        O, or a tuple of O and what else was asked for. Exact: O(N) memory beside the inputs, and O
        and LSE kept for backward; polynomial: sums of r (Dv + 1) numbers a head and key set. The
        other arguments and errors in the module's docstring.
    """
    keys, values, masks = (k1, k2), (v1, v2), (mask1, mask2)
    arguments.check_tensors(q, keys, values)
    arguments.check_masks(masks, keys)
    widths = arguments.check_window(window, 2)
    arguments.check_method(method, degree, coefficients, tol)
    _checks.flags(causal=causal, return_lse=return_lse, return_info=return_info)
    number = arguments.check_scale(scale, q.shape[-1])
    if return_info and torch.compiler.is_compiling():
        raise _checks.fail_value("return_info", "False under torch.compile", True)
    if method == "hybrid" and not (causal and widths and all(widths)):
        raise _checks.fail_value(
            "window", 'two widths > 0, and causal=True, with method="hybrid"', window
        )
    q, *rest = methods.autocast((q, *keys, *values))
    keys, values = (rest[0], rest[1]), (rest[2], rest[3])
    width = values[0].shape[-1]
    found = _planned(
        q, keys, values, masks, method, degree, coefficients, tol, number, causal, widths, backend,
        return_info,
    )  # fmt: skip
    if found.method == "exact":
        chosen = methods.resolve(backend, q, width)
        out, lse = methods.exact(q, keys, values, masks, number, causal, widths, chosen)
    else:
        g = found.degree
        assert g is not None
        chosen = methods.resolve(backend, q, width, 3, g, causal or bool(widths))
        if method != "auto":
            methods.check_odd(q, keys, masks, number, g, coefficients, causal, widths)
        if found.method == "hybrid":
            out, lse = methods.hybrid(
                q, keys, values, masks, g, coefficients, number, widths, chosen
            )
        else:
            out, lse = methods.polynomial(
                q, keys, values, masks, g, coefficients, number, causal, widths, chosen
            )
    if not (return_lse or return_info):
        return out
    return (out, *((lse,) if return_lse else ()), *((found,) if return_info else ()))


def _planned(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    method: str,
    degree: int | None,
    kind: str,
    tol: float | None,
    scale: float,
    causal: bool,
    window: tuple[int, ...],
    backend: str | None,
    costs: bool,
) -> Plan:
    """What ``method`` means on this input."""
    width = values[0].shape[-1]

    def exact(bounded: bool) -> float:
        if not costs:
            return math.nan
        name = methods.resolve(backend, q, width)
        return plan.exact_cost(q, keys, width, bounded, window, name)

    if method == "auto" and tol is None:
        return Plan("exact", None, exact(causal), 0.0, None, "no tolerance was given: exact")
    if method == "exact":
        return Plan("exact", None, exact(causal), 0.0, None, "asked for")
    if tol is not None and (method == "auto" or degree is None):
        if torch.compiler.is_compiling():
            raise _checks.fail_value(
                "tol",
                "None under torch.compile, as choosing reads the data on the host: call choose() "
                "before, and give method and degree",
                tol,
            )
        return _choose(
            q, keys, values, masks, tol, degree, kind, scale, causal, window, backend,
            method == "polynomial", 16,
        )  # fmt: skip
    g = 2 if degree is None else degree
    ordered = causal or bool(window)
    name = methods.resolve(backend, q, width, len(keys) + 1, g, ordered)
    cost = plan.polynomial_cost(q, keys, width, g, ordered, name) if costs else math.nan
    if method == "hybrid":
        if costs:
            cost = 2 * cost + exact(True)
        return Plan("hybrid", g, cost, math.inf, None, "asked for")
    bound, estimate = math.inf, None
    if costs or tol is not None:
        if torch.compiler.is_compiling():
            raise _checks.fail_value("tol", "None under torch.compile", tol)
        _checks.readable("q", q)
        judge = plan.Judge(
            q, keys, values, masks, kind, scale=scale, causal=causal, window=window, rows=16
        )
        judged = judge.judge(g)
        bound, estimate = judged.bound, judged.estimate
        if tol is not None and judged.within(tol) is None:
            size = float(judge.radius.max())
            raise ValueError(plan.unreachable(tol, size, str(judged), (estimate, g)))
    return Plan("polynomial", g, cost, bound, estimate, "asked for")


def _choose(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    tol: float,
    degree: int | None,
    kind: str,
    scale: float,
    causal: bool,
    window: tuple[int, ...],
    backend: str | None,
    must: bool,
    rows: int,
) -> Plan:
    _checks.readable("q", q)
    chosen = _backends.resolve(FAMILY, backend, q)
    return plan.choose(
        q, keys, values, masks, tol=tol, degree=degree, kind=kind, scale=scale, causal=causal,
        window=window, backend=chosen, highest=ops.highest_degree(chosen), must=must, rows=rows,
    )  # fmt: skip


def choose(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    *,
    tol: float,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    degree: int | None = None,
    coefficients: str = "taylor",
    rows: int = 16,
    backend: str | None = None,
) -> Plan:
    """What ``kronecker_attention(method="auto", tol=tol)`` would do, and why.

    Args:
        tol: relative error of the output that is tolerated, > 0.
        degree: the only degree to look at; None: 1 to 6, the smallest that is good enough.
        coefficients: as in ``kronecker_attention``.
        rows: how many rows are evaluated exactly for the estimate.

    Returns:
        A ``Plan``: method, degree, predicted cost, certified bound, estimate and the reason. Reads
        the data on the host. The other arguments and errors in the module's docstring.
    """
    keys, values, masks = (k1, k2), (v1, v2), (mask1, mask2)
    arguments.check_tensors(q, keys, values)
    arguments.check_masks(masks, keys)
    widths = arguments.check_window(window, 2)
    _checks.one_of("coefficients", coefficients, arguments.COEFFICIENTS)
    arguments.check_degree(degree)
    if tol is None:
        raise _checks.fail_type("tol", "a number > 0", tol)
    arguments.check_tolerance(tol)
    _checks.flags(causal=causal)
    _checks.integer_between("rows", rows, 1, 2**20)
    number = arguments.check_scale(scale, q.shape[-1])
    return _choose(
        q, keys, values, masks, tol, degree, coefficients, number, causal, widths, backend, False,
        rows,
    )  # fmt: skip


def polynomial_attention(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    degree: int = 2,
    coefficients: str = "taylor",
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention over tuples of k - 1 keys, one of each key set, by the polynomial method.

    O[i] = sum P v_1[j1] * ... * v_{k-1}[j_{k-1}], P proportional to p(X), p of degree g in place of
    exp. The rank C(D + g, g) does not depend on the order k.

    Args:
        keys, values: lists of k - 1 >= 2 tensors; lengths may differ from set to set.
        degree, coefficients, return_lse: as in ``kronecker_attention``.
        masks: a list of masks or None, one for each key set, or None.

    Returns:
        O, or (O, log of the denominator). 2 k N r Dv FLOPs a head, r = C(D + g, g). The other
        arguments and errors in the module's docstring. ``reference.attention_any_order`` is exact.
    """
    arguments.check_lists(keys, values)
    arguments.check_tensors(q, keys, values, listed=True)
    masks = arguments.check_mask_list(masks, keys)
    widths = arguments.check_window(window, len(keys))
    _checks.one_of("coefficients", coefficients, arguments.COEFFICIENTS)
    if degree is None:
        raise _checks.fail_type("degree", f"an int from 1 to {arguments.HIGHEST_DEGREE}", degree)
    arguments.check_degree(degree)
    _checks.flags(causal=causal, return_lse=return_lse)
    number = arguments.check_scale(scale, q.shape[-1])
    q, *rest = methods.autocast((q, *keys, *values))
    keys, values = rest[: len(keys)], rest[len(keys) :]
    ordered = causal or bool(widths)
    chosen = methods.resolve(backend, q, values[0].shape[-1], len(keys) + 1, degree, ordered)
    methods.check_odd(q, keys, masks, number, degree, coefficients, causal, widths)
    out, lse = methods.polynomial(
        q, keys, values, masks, degree, coefficients, number, causal, widths, chosen
    )
    return (out, lse) if return_lse else out


def strassen_attention(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    mask1: Tensor | None = None,
    mask2: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Exact attention over pairs with the logits scale (q_i.k1_j + k1_j.k2_k + k2_k.q_i).

    Args:
        return_lse: also return LSE (B, Hq, N).

    Returns:
        O, or (O, LSE). 2 (D + Dv) N M1 M2 FLOPs a head and O(N) memory beside the inputs, as
        ``kronecker_attention``. Arguments and errors in the module's docstring.
    """
    keys, values, masks = (k1, k2), (v1, v2), (mask1, mask2)
    arguments.check_tensors(q, keys, values)
    arguments.check_masks(masks, keys)
    widths = arguments.check_window(window, 2)
    _checks.flags(causal=causal, return_lse=return_lse)
    number = arguments.check_scale(scale, q.shape[-1])
    q, k1, k2, v1, v2 = methods.autocast((q, *keys, *values))
    chosen = methods.resolve(backend, q, v1.shape[-1])
    out, lse = methods.exact(
        q, (k1, k2), (v1, v2), masks, number, causal, widths, chosen, form="strassen"
    )
    return (out, lse) if return_lse else out
