"""Direct calls of the compiled Kronecker attention kernels, and what they are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from helpers import kronecker_cases as C
from helpers.parity import assert_parity
from sublimate._native import kronecker_attention as N
from sublimate.kronecker_attention import reference as R
from torch import Tensor

NAMES = ("out", "lse", "dq", "dk1", "dk2", "dv1", "dv2")


def unset(like: Tensor) -> Tensor:
    """A tensor of like's shape, dtype and strides, all NaN: what is not written shows."""
    return torch.full_like(like, torch.nan)


def exact(
    v: C.Variant, tensors: Sequence[Tensor], dlse: Tensor | None = None, form: str = "kronecker"
) -> list[Tensor]:
    """out, lse and five gradients by the CPU kernels; tensors as ``kronecker_cases.inputs``."""
    q, k1, k2, v1, v2, dout = tensors
    masks, window = C.masks(v), list(v.window or ())
    acc, scale = R.accumulator(q.dtype), v.dims[0] ** -0.5
    out, lse = unset(dout), torch.full(q.shape[:3], torch.nan, dtype=acc)
    N.attention("cpu", q, k1, k2, v1, v2, *masks, out, lse, scale, v.causal, window, form)
    delta = (dout.to(acc) * out.to(acc)).sum(-1)
    if dlse is not None:
        delta = delta - dlse
    grads = [unset(t) for t in (q, k1, k2, v1, v2)]
    N.attention_bwd(
        "cpu", dout, q, k1, k2, v1, v2, lse, delta, *masks, *grads, scale, v.causal, window, form
    )
    return [out, lse, *grads]


def strassen(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], allow: Sequence[Tensor], s: float
) -> tuple[Tensor, Tensor]:
    """(O, LSE) with Strassen's logits, every one at once."""
    groups = q.shape[1] // keys[0].shape[1]
    k1, k2 = (k.repeat_interleave(groups, 1) for k in keys)
    v1, v2 = (t.repeat_interleave(groups, 1) for t in values)
    pairs = torch.einsum("bhja,bhka->bhjk", k1, k2)[:, :, None]
    first = torch.einsum("bhia,bhja->bhij", q, k1)[..., None]
    second = torch.einsum("bhia,bhka->bhik", q, k2)[..., None, :]
    logits = s * (pairs + first + second)
    seen = (allow[0][..., None] & allow[1][:, :, None]).unsqueeze(1)
    flat = logits.masked_fill(~seen, -math.inf).flatten(3)
    weight = flat.softmax(-1).nan_to_num(0.0).reshape(logits.shape)
    out = torch.einsum("bhijk,bhjd,bhkd->bhid", weight, v1, v2)
    return out, flat.logsumexp(-1)


def exact_by_definition(
    v: C.Variant, tensors: Sequence[Tensor], dlse: Tensor | None = None, form: str = "kronecker"
) -> list[Tensor]:
    """The same in torch, in the dtype of the tensors."""
    *leaves, dout = tensors
    allow, scale = C.allowed(v), v.dims[0] ** -0.5
    formula = C.dense if form == "kronecker" else strassen

    def run(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = formula(q, (k1, k2), (v1, v2), allow, scale)
        # A row without keys has no gradient of its log.
        return out, torch.where(lse == -math.inf, lse.detach(), lse)

    upstream = [dout] if dlse is None else [dout, dlse.to(dout.dtype)]
    return C.gradients(run, leaves, upstream)


def term_sizes(
    v: C.Variant, wide: Sequence[Tensor], lse: Tensor, delta: Tensor, form: str
) -> list[Tensor]:
    """Sizes of the sums whose terms cancel in each result: what rounding is measured by.

    A weight exp(X) is off by the rounding of X, of at most the largest logit in magnitude.
    """
    scale, groups = v.dims[0] ** -0.5, v.heads[0] // v.heads[1]
    q, k1, k2, v1, v2, g = wide
    k1, k2, v1, v2 = (t.repeat_interleave(groups, 1) for t in (k1, k2, v1, v2))
    if form == "kronecker":
        parts = (torch.einsum("bhia,bhja,bhka->bhijk", q, k1, k2),)
    else:
        parts = (
            torch.einsum("bhja,bhka->bhjk", k1, k2)[:, :, None],
            torch.einsum("bhia,bhja->bhij", q, k1)[..., None],
            torch.einsum("bhia,bhka->bhik", q, k2)[..., None, :],
        )
    logits = scale * torch.as_tensor(sum(parts))
    largest = scale * torch.as_tensor(sum(x.abs() for x in parts)).amax((3, 4))
    first, second = C.allowed(v)
    seen = (first[..., None] & second[:, :, None])[:, None]
    safe = torch.where(lse == -math.inf, torch.zeros_like(lse), lse)
    p = torch.where(seen, (logits - safe[..., None, None]).exp(), torch.zeros_like(logits))
    q, k1, k2, v1, v2, g = (t.abs() for t in (q, k1, k2, v1, v2, g))
    dp = torch.einsum("bhid,bhjd,bhkd->bhijk", g, v1, v2)
    ds = p * (dp + delta.abs()[..., None, None]) * scale

    def each(*which: Tensor) -> list[Tensor]:
        """Sums over the other two of ds times what the logit's derivative holds."""
        found = []
        for at, letter in enumerate("ijk"):
            others = [(n, t) for n, t in zip("ijk", which, strict=True) if n != letter]
            if form == "kronecker":
                rows = ",".join(f"bh{n}a" for n, _ in others)
                found.append(
                    torch.einsum(f"bhijk,{rows}->bh{letter}a", ds, *(t for _, t in others))
                )
            else:
                found.append(
                    torch.as_tensor(
                        sum(torch.einsum(f"bhijk,bh{n}a->bh{letter}a", ds, t) for n, t in others)
                    )
                )
            if at:
                found[-1] = found[-1].unflatten(1, (-1, groups)).sum(2)
        return found

    dv1 = torch.einsum("bhijk,bhid,bhkd->bhjd", p, g, v2).unflatten(1, (-1, groups)).sum(2)
    dv2 = torch.einsum("bhijk,bhid,bhjd->bhkd", p, g, v1).unflatten(1, (-1, groups)).sum(2)
    out = torch.einsum("bhijk,bhjd,bhkd->bhid", p, v1, v2)
    factor = 1 + float(largest.max())
    lse_size = torch.maximum(lse.abs().nan_to_num(posinf=0.0), largest)
    sums = (out, *each(q, k1, k2), dv1, dv2)
    out, *grads = (t * factor for t in sums)
    return [out, lse_size, *grads]


def check_exact(
    v: C.Variant, dtype: torch.dtype, size: float = 0.7, form: str = "kronecker"
) -> None:
    tensors = C.inputs(v, dtype, size)
    dlse = C.normal(tensors[0].shape[:3], 11, R.accumulator(dtype))
    found = exact(v, tensors, dlse, form)
    wide = [t.double() for t in tensors]
    truth = exact_by_definition(v, wide, dlse.double(), form)
    acc = [t.to(R.accumulator(dtype)) for t in tensors]
    eager = exact_by_definition(v, acc, dlse, form)
    delta = (wide[5] * truth[0]).sum(-1) - dlse.double()
    sizes = term_sizes(v, wide, truth[1], delta, form)
    compare(NAMES, found, truth, eager, sizes, v.name)


def compare(
    names: Sequence[str], found: Sequence[Tensor], truth: Sequence[Tensor],
    eager: Sequence[Tensor], sizes: Sequence[Tensor], what: str,
) -> None:  # fmt: skip
    """Results, then gradients (their names begin with d), by the rule of helpers.parity."""
    for name, f, t, e, size in zip(names, found, truth, eager, sizes, strict=True):
        if (t.abs() <= 1e-12 * size).all():
            # Differences of equal numbers, each rounded: nothing but rounding is left.
            assert (f.double().abs() <= 8 * torch.finfo(f.dtype).eps * size.max()).all(), name
            continue
        # Where eager's gradients are NaN (rows without keys), it allows nothing.
        e = torch.where(e.isnan(), t.to(e.dtype), e).to(f.dtype)
        assert_parity(f, t, e, gradient=name[0] == "d", scale=size, what=f"{what}: {name}")


# ------------------------------------------------------------------------------------- polynomial


def coefficients(batch: int, heads: int, degree: int, dtype: torch.dtype) -> Tensor:
    """Taylor's of exp, a little different for each head."""
    c = torch.tensor([1 / math.factorial(j) for j in range(degree + 1)], dtype=torch.float64)
    return (c + 0.1 * C.normal((batch, heads, degree + 1), 3, torch.float64).abs()).to(dtype)


class Sums:
    """A polynomial call: its data, its result by the CPU kernels and by the definition."""

    def __init__(
        self, v: C.Variant, lengths: Sequence[int], degree: int, dtype: torch.dtype,
        window: Sequence[int] = (),
    ) -> None:  # fmt: skip
        (hq, hkv), (d, dv), b = v.heads, v.dims, v.batch
        self.v, self.lengths, self.window, self.scale = v, lengths, list(window), d**-0.5
        acc = R.accumulator(dtype)
        self.q = C.normal((b, hq, v.n, d), 0, dtype)
        self.keys = [C.normal((b, hkv, m, d), 20 + m, dtype) for m in lengths]
        self.values = [C.normal((b, hkv, m, dv), 200 + m, dtype) for m in lengths]
        self.masks = []
        if v.padding:
            self.masks = [C.normal((b, m), 1000 + m, torch.float64) > -0.5 for m in lengths]
        self.c = coefficients(b, hq, degree, acc)
        self.dnumerator = C.normal((b, hq, v.n, dv), 5, acc)
        self.ddenominator = C.normal((b, hq, v.n), 6, acc)

    def kernel(self) -> list[Tensor]:
        numerator, denominator = unset(self.dnumerator), unset(self.ddenominator)
        settings = (self.scale, self.v.causal, self.window)
        inputs = (self.q, self.keys, self.values, self.masks, self.c)
        N.polynomial("cpu", *inputs, numerator, denominator, *settings)
        dq, *others = (unset(t) for t in (self.q, *self.keys, *self.values))
        sets = len(self.keys)
        N.polynomial_bwd(
            "cpu", self.dnumerator, self.ddenominator, *inputs, dq, others[:sets], others[sets:],
            *settings,
        )  # fmt: skip
        return [numerator, denominator, dq, *others]

    def _allowed(self) -> list[Tensor]:
        masks = self.masks or [None] * len(self.lengths)
        windows = self.window or [0] * len(self.lengths)
        found = []
        for m, mask, w in zip(self.lengths, masks, windows, strict=True):
            i, j = torch.arange(self.v.n)[:, None], torch.arange(m)[None]
            a = (j <= i) | torch.tensor(not (self.v.causal or w))
            a = a & ((j > i - w) | torch.tensor(not w))
            a = a.expand(self.v.batch, -1, -1)
            found.append(a if mask is None else a & mask[:, None])
        return found

    def definition(
        self, dtype: torch.dtype, sizes: bool = False, backwards: bool = False
    ) -> list[Tensor]:
        """Every logit at once; sizes: of everything its absolute value, so that nothing cancels;
        backwards: every sum over positions from its other end, so that it is rounded otherwise."""
        allow, sets = self._allowed(), len(self.keys)
        if backwards:
            allow = [a.flip(1, 2) for a in allow]
        groups = self.v.heads[0] // self.v.heads[1]
        letters = "jklmn"[:sets]
        if backwards:
            prepare = lambda t: t.flip(2)  # noqa: E731
        else:
            prepare = torch.abs if sizes else torch.clone
        c = self.c.to(dtype)

        def run(q: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            rest = tuple(t.repeat_interleave(groups, 1) for t in rest)
            keys = ",".join(f"bh{x}a" for x in letters)
            logits = torch.einsum(f"bhia,{keys}->bhi{letters}", q, *rest[:sets]) * self.scale
            weight = torch.zeros_like(logits)
            for j in reversed(range(c.shape[-1])):
                weight = weight * logits + c[..., j].reshape(*c.shape[:2], *(1,) * (sets + 1))
            for at, a in enumerate(allow):
                shape = [a.shape[0], 1, a.shape[1], *(1,) * sets]
                shape[3 + at] = a.shape[2]
                weight = torch.where(a.reshape(shape), weight, torch.zeros_like(weight))
            values = ",".join(f"bh{x}d" for x in letters)
            numerator = torch.einsum(f"bhi{letters},{values}->bhid", weight, *rest[sets:])
            return numerator, weight.flatten(3).sum(-1)

        leaves = [prepare(t.to(dtype)) for t in (self.q, *self.keys, *self.values)]
        upstream = [prepare(t.to(dtype)) for t in (self.dnumerator, self.ddenominator)]
        found = C.gradients(run, leaves, upstream)
        return [t.flip(2) for t in found] if backwards else found

    def check(self) -> None:
        found = self.kernel()
        truth = self.definition(torch.float64)
        # In float64 the truth is rounded too, over sums of 10^5 terms by more than the kernels: how
        # much shows in the other order.
        wide = self.q.dtype == torch.float64
        eager = self.definition(R.accumulator(self.q.dtype), backwards=wide)
        # A feature is a product of degree factors, each product rounded, in every factor.
        roundings = 1 + self.c.shape[-1] / 2
        sizes = [t * roundings for t in self.definition(torch.float64, sizes=True)]
        names = ("numerator", "denominator", *(f"d{at}" for at in range(len(found) - 2)))
        compare(names, found, truth, eager, sizes, self.v.name)
