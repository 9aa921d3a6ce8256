"""The methods below the public functions: exact, polynomial and hybrid, by a resolved backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks
from .._autograd import refuse_tangents, wants_gradient
from .._dtypes import accumulator
from . import bounds, ops, reference
from . import coefficients as polynomials
from .autograd import NO_FORWARD_MODE, KroneckerAttention, KroneckerPolynomial

FAMILY = "kronecker_attention"
logger = logging.getLogger("sublimate")


def autocast(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of them in autocast's dtype where it is on, as torch's attention does; fp64 stays."""
    x = tensors[0]
    kind = x.device.type
    if x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return [t.to(torch.get_autocast_dtype(kind)) for t in tensors]
    return list(tensors)


def resolve(
    backend: str | None,
    q: Tensor,
    width: int,
    order: int = 3,
    degree: int = 0,
    ordered: bool = False,
) -> str:
    """The backend that runs, with the limits that depend on shapes and degrees."""
    chosen = _backends.resolve(FAMILY, backend, q)
    why = ops.limits(chosen, (q.shape[-1], width), order, degree, ordered)
    if not why:
        return chosen
    if (backend or _backends.get_backend()) == "auto":
        if not torch.compiler.is_compiling():
            logger.debug("%s: auto passes over %s: %s", FAMILY, chosen, "; ".join(why))
        return "reference"
    raise _backends.BackendUnavailable(
        f"backend {chosen!r} of sublimate.{FAMILY} cannot run this call: it has "
        f"{'; '.join(why)}. Would work: reference."
    )


def distinct(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The tensors, each once: Dynamo takes none twice, as where keys are values. Views, no copy."""
    found: list[Tensor | None] = []
    for t in tensors:
        again = t is not None and any(t is other for other in found)
        found.append(t.view_as(t) if again and t is not None else t)
    return found


def _recorded(*tensors: Tensor) -> bool:
    """Whether backward will want something of this call to a compiled backend."""
    refuse_tangents(NO_FORWARD_MODE, *tensors)
    return wants_gradient(*tensors)


def exact(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    scale: float,
    causal: bool,
    window: tuple[int, ...],
    backend: str,
    form: str = "attention",
) -> tuple[Tensor, Tensor]:
    """(O, LSE) by a resolved backend; form: "attention", or "strassen" for its logits."""
    if backend == "reference" and form == "strassen":
        return reference.strassen(
            q, *keys, *values, *masks, scale=scale, causal=causal, window=window
        )
    if backend == "reference":
        return reference.attention_any_order(
            q, keys, values, masks, scale=scale, causal=causal, window=window
        )
    tensors = distinct((q, *keys, *values, *masks))
    everything = (*tensors, scale, causal, window, backend)
    if not _recorded(q, *keys, *values):
        registered = torch.ops.sublimate
        strassen = form == "strassen"
        run = registered.kronecker_strassen_fwd if strassen else registered.kronecker_attention_fwd
        out, lse = run(*everything)
    else:
        out, lse = KroneckerAttention.apply(*everything, form)
    return out, lse


def _sums(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    c: Tensor,
    scale: float,
    causal: bool,
    window: tuple[int, ...],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the polynomial method by a resolved backend."""
    if backend == "reference":
        return reference.polynomial(
            q, keys, values, masks, c, scale=scale, causal=causal, window=window
        )
    given: list[Tensor] = []
    if any(m is not None for m in masks):
        given = [
            q.new_ones((k.shape[0], k.shape[2]), dtype=torch.bool) if m is None else m
            for m, k in zip(masks, keys, strict=True)
        ]
    if not _recorded(q, *keys, *values):
        numerator, denominator = torch.ops.sublimate.kronecker_polynomial_fwd(
            q, list(keys), list(values), given, c, scale, causal, window, backend
        )
    else:
        q, *rest = distinct((q, *keys, *values, *given))
        numerator, denominator = KroneckerPolynomial.apply(
            q, c, len(keys), scale, causal, window, backend, *rest
        )
    return numerator, denominator


def _log_denominator(denominator: Tensor) -> Tensor:
    """log z, -inf for rows with nothing to read, whose gradient is 0."""
    empty = denominator == 0
    safe = torch.where(empty, torch.ones_like(denominator), denominator)
    return torch.where(empty, torch.full_like(safe, -math.inf), safe.log())


def check_odd(
    q: Tensor,
    keys: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    scale: float,
    degree: int,
    kind: str,
    causal: bool,
    window: tuple[int, ...],
) -> None:
    """An odd polynomial has a root: refused where a logit may lie beyond it. Reads on the host."""
    if degree % 2 == 0:
        return
    if torch.compiler.is_compiling():
        raise _checks.fail_value(
            "degree", "an even number under torch.compile (odd ones need a look at the data)",
            degree,
        )  # fmt: skip
    _checks.readable("q", q)
    radius = bounds.row_radius(q, keys, scale, masks=masks, causal=causal, window=window)
    found = bounds.with_coefficients(q, keys, masks, scale, degree, kind, radius)
    if not bool(found.positive.all()):
        raise _checks.fail_value(
            "degree",
            f"an even number, as logits may reach {float(radius.max()):.3g} in magnitude, where "
            "the polynomial of an odd degree, and with it the denominator, may vanish",
            degree,
        )


def polynomial(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    degree: int,
    kind: str,
    scale: float,
    causal: bool,
    window: tuple[int, ...],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(O, log of the denominator) by a resolved backend."""
    acc = accumulator(q.dtype)
    c = polynomials.make(kind, degree, q, keys, masks, scale, acc)
    numerator, denominator = _sums(q, keys, values, masks, c, scale, causal, window, backend)
    out = reference.divide(numerator, denominator, q.dtype)
    return reference.layout_like(q, out), _log_denominator(denominator)


def hybrid(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    degree: int,
    kind: str,
    scale: float,
    window: tuple[int, ...],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Exact for pairs inside the window, the polynomial for all others that causality allows."""
    near, near_lse = exact(q, keys, values, masks, scale, True, window, backend)
    c = polynomials.make(kind, degree, q, keys, masks, scale, accumulator(q.dtype))
    every, every_z = _sums(q, keys, values, masks, c, scale, True, (), backend)
    inner, inner_z = _sums(q, keys, values, masks, c, scale, True, window, backend)
    # Relative to exp(top): the near part may be large, the far part is within the polynomial's
    # reach by assumption.
    top = near_lse.detach().clamp_min(0)
    weight = torch.exp(near_lse - top)
    weight = torch.where(near_lse == -math.inf, torch.zeros_like(weight), weight)
    damp = torch.exp(-top)
    denominator = weight + (every_z - inner_z) * damp
    numerator = near.to(weight.dtype) * weight.unsqueeze(-1)
    numerator = numerator + (every - inner) * damp.unsqueeze(-1)
    out = reference.divide(numerator, denominator, q.dtype)
    return reference.layout_like(q, out), _log_denominator(denominator) + top
