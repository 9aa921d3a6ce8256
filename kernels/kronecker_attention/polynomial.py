"""The polynomial method: how its passes follow from the kernels.

Full attention is factored, of any order k: N = Phi_q (H_1 * ... * H_{k-1}), H_m = Phi_m^T V_m, in
O(n r Dv) time. What is causal is cut into segments of L positions (order 3): pairs of keys both
before a row's segment through sums carried from segment to segment, the other pairs, of which one
key is in the segment, by their logits, O(n L D) a row. A window is summed by its logits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import configs
from .launch import Monomials, Pairs, backward, evaluate, forward, gradient, moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@functools.lru_cache(maxsize=8)
def monomials(d: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(degree, rank) int32 indices, and of each monomial |a|! / a! and |a|, fp64 and int64.

    A monomial is an ascending row of ``degree`` indices in 0 .. d, where d stands for 1.
    """
    import torch

    rows = torch.combinations(torch.arange(d + 1), degree, with_replacement=True)
    size = (rows < d).sum(1)
    run = torch.ones(rows.shape[0], dtype=torch.float64)
    weight = run.clone()
    for p in range(degree):
        run = torch.where(rows[:, p] == rows[:, p - 1], run + 1, 1.0) if p else run
        real = rows[:, p] < d
        weight = torch.where(real, weight * (p + 1) / run, weight)
    index = rows.t().to(torch.int32).contiguous()
    return index.to(device), weight.to(device), size.to(device)


def _weights(coefficients: Tensor, multiplicity: Tensor, size: Tensor, scale: float) -> Tensor:
    """(B, Hq, rank): c_|a| scale^|a| |a|! / a!."""
    powers = (scale ** size.double() * multiplicity).to(coefficients.dtype)
    return coefficients[..., size] * powers


def _masks(masks: Sequence[Tensor], keys: Sequence[Tensor]) -> list[Tensor | None]:
    return list(masks) if masks else [None] * len(keys)


def _is_direct(causal: bool, window: Sequence[int], n: int, dv: int) -> bool:
    """Whether everything is summed by logits: a window, or one segment."""
    return any(window) or (causal and n <= configs.segment(dv))


def check_order(keys: Sequence[Tensor], causal: bool, window: Sequence[int]) -> None:
    if len(keys) != 2 and (causal or any(window)):
        raise ValueError(
            "keys: the triton backend takes more than 2 key sets without causal and window only, "
            f"got {len(keys)}"
        )


def _others(sums: Sequence[Tensor], at: int) -> Tensor:
    """Product of all but one."""
    found = [s for m, s in enumerate(sums) if m != at]
    return functools.reduce(lambda a, b: a * b, found)


def _before(sums: Tensor) -> Tensor:
    """Of each segment, the sum over those before it."""
    import torch

    return torch.cat((torch.zeros_like(sums[:1]), sums[:-1].cumsum(0)))


def _after(sums: Tensor) -> Tensor:
    return _before(sums.flip(0)).flip(0)


class _Factored:
    """Sums of features of all key sets, and with them the products that both passes need."""

    def __init__(self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
                 masks: Sequence[Tensor | None], coefficients: Tensor, scale: float,
                 causal: bool) -> None:  # fmt: skip
        index, multiplicity, size = monomials(q.shape[3], coefficients.shape[-1] - 1, q.device)
        n = q.shape[2]
        length = configs.segment(values[0].shape[3]) if causal else 2**30
        self.q, self.causal = q, causal
        self.group = q.shape[1] // keys[0].shape[1]
        self.weight = _weights(coefficients, multiplicity, size, scale)
        self.of = Monomials(index, length, -(-n // length))
        # Keys after the last row are read by none.
        cut = n if causal else None
        self.keys = [k[:, :, :cut] for k in keys]
        self.values = [v[:, :, :cut] for v in values]
        self.masks = [None if m is None else m[:, :cut].contiguous() for m in masks]
        found = [
            moments(k, v, None, m, None, 1, self.of)
            for k, v, m in zip(self.keys, self.values, self.masks, strict=True)
        ]
        carry = _before if causal else (lambda s: s)
        self.sums = [carry(s) for s, _ in found]
        self.ones = [carry(o) for _, o in found]

    def forward(self, numerator: Tensor, denominator: Tensor) -> None:
        sums, ones = (functools.reduce(lambda a, b: a * b, s) for s in (self.sums, self.ones))
        evaluate(self.q, self.weight, sums, ones, self.group, self.of, numerator, denominator)

    def backward(self, dn: Tensor, dz: Tensor, dq: Tensor, dkeys: Sequence[Tensor],
                 dvalues: Sequence[Tensor]) -> None:  # fmt: skip
        sums, ones = (functools.reduce(lambda a, b: a * b, s) for s in (self.sums, self.ones))
        gradient(self.q, dn, dz, None, self.weight, sums, ones, self.group, self.of, dq)
        dsums, dones = moments(self.q, dn, dz, None, self.weight, self.group, self.of)
        carry = _after if self.causal else (lambda s: s)
        for at, (k, v, mask) in enumerate(zip(self.keys, self.values, self.masks, strict=True)):
            ds, do = carry(dsums * _others(self.sums, at)), carry(dones * _others(self.ones, at))
            cut = k.shape[2]
            evaluate(k, None, ds, None, 1, self.of, dvalues[at][:, :, :cut], None)
            if mask is not None:
                dvalues[at][:, :, :cut].masked_fill_(~mask[:, None, :, None], 0)
            gradient(k, v, None, mask, None, ds, do, 1, self.of, dkeys[at][:, :, :cut])


def polynomial(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
               masks: Sequence[Tensor], coefficients: Tensor, numerator: Tensor,
               denominator: Tensor, scale: float, causal: bool,
               window: Sequence[int]) -> None:  # fmt: skip
    """Numerator and denominator, of any order; causal or windowed of order 3."""
    check_order(keys, causal, window)
    sets = _masks(masks, keys)
    direct = _is_direct(causal, window, q.shape[2], values[0].shape[3])
    if direct or causal:
        near = 0 if direct else configs.segment(values[0].shape[3])
        pairs = Pairs.of(keys, values, sets, causal, window, near)
        forward(q, pairs, coefficients, numerator, denominator, scale, "trilinear")
    if direct:
        return
    factored = _Factored(q, keys, values, sets, coefficients, scale, causal)
    if not causal:
        factored.forward(numerator, denominator)
        return
    import torch

    far, total = torch.empty_like(numerator), torch.empty_like(denominator)
    factored.forward(far, total)
    numerator.add_(far)
    denominator.add_(total)


def polynomial_gradients(dn: Tensor, dz: Tensor, q: Tensor, keys: Sequence[Tensor],
                         values: Sequence[Tensor], masks: Sequence[Tensor], coefficients: Tensor,
                         dq: Tensor, dkeys: Sequence[Tensor], dvalues: Sequence[Tensor],
                         scale: float, causal: bool, window: Sequence[int]) -> None:  # fmt: skip
    """Gradients of ``polynomial`` from those of its results."""
    check_order(keys, causal, window)
    sets = _masks(masks, keys)
    direct = _is_direct(causal, window, q.shape[2], values[0].shape[3])
    final = [dq, *dkeys, *dvalues]
    near = final
    if direct or causal:
        length = 0 if direct else configs.segment(values[0].shape[3])
        pairs = Pairs.of(keys, values, sets, causal, window, length)
        if not direct:
            near = [t.new_empty(t.shape, dtype=dz.dtype) for t in final]
        backward(dn, q, pairs, None, -dz, coefficients, near[0], near[1:], scale, "trilinear")
    if direct:
        return
    factored = _Factored(q, keys, values, sets, coefficients, scale, causal)
    if not causal:
        factored.backward(dn, dz, dq, dkeys, dvalues)
        return
    far = [t.new_zeros(t.shape) for t in near]
    factored.backward(dn, dz, far[0], far[1 : 1 + len(keys)], far[1 + len(keys) :])
    for gradient_, here, there in zip(final, near, far, strict=True):
        gradient_.copy_(here.add_(there))
