"""Cases of test_triton_interpreter.py: every Triton kernel of the family against dense formulas.

They run under Triton's interpreter on CPU tensors, in a process of their own. The truth is float64
on the rounded inputs, from logits of every triple; the measure of errors is the same in the dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.parity import assert_parity
from sublimate.kernels.kronecker_attention import bwd, configs, fwd, launch
from sublimate.kernels.kronecker_attention import polynomial as method
from sublimate.kronecker_attention.autograd import KroneckerAttention
from torch import Tensor

HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64
NAMES = ("dq", "dk1", "dk2", "dv1", "dv2")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 16 x 16, so that a few dozen rows have inner tiles, edges and a ragged end."""
    table = {
        size: dict.fromkeys((16, 32, 64, 128), configs.Config(16, 16, 4)) for size in (2, 4, 8)
    }
    monkeypatch.setitem(configs.TARGETS, "sm_90", dict.fromkeys(configs.TABLES, table))


@dataclass(frozen=True)
class Case:
    batch: int = 1
    heads: int = 1
    group: int = 1
    n: int = 17
    m1: int = 17
    m2: int = 17
    d: int = 8
    dv: int = 8
    dtype: torch.dtype = SINGLE
    causal: bool = False
    window: tuple[int, ...] = ()
    masked: bool = False
    empty: bool = False  # one batch whose keys are all masked
    size: float = 1.0
    strided: bool = False  # (B, N, H, D) by transpose, parts of wider rows
    scale: float = 0.35

    @property
    def acc(self) -> torch.dtype:
        return DOUBLE if self.dtype == DOUBLE else SINGLE

    def tensor(self, heads: int, length: int, last: int) -> Tensor:
        if not self.strided:
            return (torch.randn(self.batch, heads, length, last) * self.size).to(self.dtype)
        wide = torch.randn(self.batch, length, heads, last + 3) * self.size
        return wide.to(self.dtype)[..., 2 : 2 + last].transpose(1, 2)

    def inputs(self) -> tuple[Tensor, ...]:
        sizes = (self.m1, self.m2)
        keys = [self.tensor(self.heads, m, self.d) for m in sizes]
        values = [self.tensor(self.heads, m, self.dv) for m in sizes]
        return (self.tensor(self.heads * self.group, self.n, self.d), *keys, *values)

    def masks(self) -> list[Tensor | None]:
        if not self.masked:
            return [None, None]
        found = [torch.rand(self.batch, m) > 0.3 for m in (self.m1, self.m2)]
        if self.empty:
            found[1][0] = False
        return list(found)

    def allowed(self, masks: list[Tensor | None]) -> Tensor:
        """(B, 1, N, M1, M2)."""
        i = torch.arange(self.n)[:, None]
        window = self.window or (0, 0)
        sets = []
        for m, mask, w in zip((self.m1, self.m2), masks, window, strict=True):
            j = torch.arange(m)[None, :]
            one = torch.ones(self.batch, self.n, m, dtype=torch.bool)
            if self.causal or w:
                one &= j <= i
            if w:
                one &= j > i - w
            sets.append(one if mask is None else one & mask[:, None, :])
        return (sets[0][:, :, :, None] & sets[1][:, :, None, :])[:, None]


def logits(kind: str, q: Tensor, k1: Tensor, k2: Tensor, scale: float) -> Tensor:
    group = q.shape[1] // k1.shape[1]
    k1, k2 = (k.repeat_interleave(group, 1) for k in (k1, k2))
    if kind == "trilinear":
        return torch.einsum("bhia,bhja,bhka->bhijk", q * scale, k1, k2)
    first = torch.einsum("bhia,bhja->bhij", q, k1)[..., None]
    second = torch.einsum("bhja,bhka->bhjk", k1, k2)[:, :, None]
    third = torch.einsum("bhia,bhka->bhik", q, k2)[:, :, :, None]
    return (first + second + third) * scale


def weighted(weight: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
    group = weight.shape[1] // v1.shape[1]
    v1, v2 = (v.repeat_interleave(group, 1) for v in (v1, v2))
    return torch.einsum("bhijk,bhja,bhka->bhia", weight, v1, v2)


def dense(kind: str, inputs: tuple[Tensor, ...], allowed: Tensor, scale: float):
    """(O, LSE), where nothing is allowed 0 and -inf."""
    q, k1, k2, v1, v2 = inputs
    x = logits(kind, q, k1, k2, scale).masked_fill(~allowed, -math.inf)
    flat = x.flatten(3)
    empty = ~allowed.flatten(3).any(-1, keepdim=True).expand(*flat.shape[:3], 1)
    lse = torch.logsumexp(flat.masked_fill(empty, 0), -1, keepdim=True)
    p = torch.where(empty, 0, torch.exp(flat - lse)).reshape(x.shape)
    return weighted(p, v1, v2), lse.squeeze(-1).masked_fill(empty.squeeze(-1), -math.inf)


def dense_polynomial(coefficients: Tensor, inputs: tuple[Tensor, ...], allowed: Tensor,
                     scale: float):  # fmt: skip
    q, k1, k2, v1, v2 = inputs
    x = logits("trilinear", q, k1, k2, scale)
    c = coefficients.to(x.dtype)[..., None, None, None, :]
    weight = sum(c[..., t] * x**t for t in range(c.shape[-1])) * allowed
    return weighted(weight, v1, v2), weight.sum((-1, -2))


def gradients(function, inputs, upstream):
    leaves = [t.detach().requires_grad_() for t in inputs]
    results = function(leaves)
    loss = sum(
        (torch.where(r.isfinite(), r, 0) * u.to(r.dtype)).sum()
        for r, u in zip(results, upstream, strict=True)
    )
    return torch.autograd.grad(loss, leaves)


def cancellation(kind, inputs, dout, delta, lse, allowed, case) -> float:
    """How much larger the terms of dS = P (dP - delta) are than dS: its floor is in their place."""
    q, k1, k2, v1, v2 = inputs
    p = torch.exp(logits(kind, q, k1, k2, case.scale) - lse[..., None, None])
    p = torch.where(allowed, p, 0)
    dp = logits("trilinear", dout, v1, v2, 1.0)
    terms = logits("trilinear", dout.abs(), v1.abs(), v2.abs(), 1.0)
    delta = delta[..., None, None]
    return max(1.0, float((p * (terms + delta.abs())).sum() / (p * (dp - delta).abs()).sum()))


def double(tensors):
    return tuple(t.double() for t in tensors)


def by_launchers(form, case, inputs, masks, dout, dlse):
    """O, LSE and the five gradients, by the functions that launch the kernels."""
    q = inputs[0]
    out = torch.empty_like(q[..., :1].expand(*q.shape[:3], case.dv))
    lse = torch.empty(q.shape[:3], dtype=case.acc)
    setting = (case.scale, case.causal, case.window)
    getattr(fwd, form)(*inputs, *masks, out, lse, *setting)
    delta = (dout.to(case.acc) * out.to(case.acc)).sum(-1) - dlse
    found = [torch.empty_like(t) for t in inputs]
    getattr(bwd, form)(dout, *inputs, lse, delta, *masks, *found, *setting)
    return out, lse, found


def by_operators(form, case, inputs, masks, dout, dlse):
    """The same by the registered operators and their gradient, as a call of the library."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    setting = (case.scale, case.causal, case.window, "triton", form)
    results = KroneckerAttention.apply(*leaves, *masks, *setting)
    found = torch.autograd.grad(results, leaves, (dout, dlse))
    return *(r.detach() for r in results), found


def check_attention(case: Case, kind: str = "trilinear", run=by_launchers) -> None:
    inputs, masks = case.inputs(), case.masks()
    allowed = case.allowed(masks)

    def function(tensors):
        return dense(kind, tuple(tensors), allowed, case.scale)

    def other_way(tensors):
        """The keys from the other end: in float64 the truth is rounded too, by what this shows."""
        q, *sets = tensors
        turned = (q, *(t.flip(2) for t in sets))
        return dense(kind, turned, allowed.flip(-1, -2), case.scale)

    eagerly = other_way if case.dtype == DOUBLE else function
    truth, eager = function(double(inputs)), eagerly(inputs)
    rows = inputs[0].shape[:3]
    dout = torch.randn(*rows, case.dv).to(case.dtype)
    dlse = torch.randn(rows).to(case.acc)
    form = "attention" if kind == "trilinear" else "strassen"
    out, lse, found = run(form, case, inputs, masks, dout, dlse)
    # Sums of terms as large as the largest results; the logarithm of a sum of numbers about 1.
    assert_parity(out, truth[0], eager[0], scale=truth[0].abs().max(), what="out")
    # As exact as the operands of its products, of which one is rounded to the dtype.
    whole = truth[1].abs().clamp_min(1)
    assert_parity(lse.to(case.dtype), truth[1], eager[1], scale=whole, what="lse")

    true = gradients(function, double(inputs), (dout, dlse))
    measure = gradients(eagerly, inputs, (dout, dlse))
    delta = (dout.to(case.acc) * out.to(case.acc)).sum(-1) - dlse
    cancels = cancellation(
        kind, double(inputs), dout.double(), delta.double(), truth[1], allowed, case
    )
    for what, mine, t, e in zip(NAMES, found, true, measure, strict=True):
        size = t.abs().max() * (cancels if what[1] != "v" else 1.0)
        assert_parity(mine, t, e, gradient=True, scale=size, what=what)
    if case.empty:
        assert not out[0].any() and (lse[0] == -math.inf).all()
        assert all(not g[0].any() for g in found)


FORMS = {
    "one": Case(n=1, m1=1, m2=1, d=4, dv=4),
    "full": Case(n=17, m1=5, m2=33, d=12, dv=20),
    "cross": Case(batch=2, n=5, m1=17, m2=3, d=5, dv=3),
    "causal": Case(n=20, m1=20, m2=20, causal=True),
    "causal-cross": Case(n=10, m1=18, m2=6, causal=True),
    "windows": Case(n=49, m1=49, m2=49, causal=True, window=(2, 19)),
    "windows-turned": Case(n=21, m1=21, m2=21, window=(17, 3)),
    "window-first": Case(n=19, m1=19, m2=7, window=(4, 0)),
    "window-second": Case(n=19, m1=5, m2=19, window=(0, 9)),
    "group": Case(batch=2, heads=2, group=3, n=6, m1=6, m2=6, causal=True),
    "multi-query": Case(group=4, n=12, m1=12, m2=12, window=(3, 8)),
    "masked": Case(batch=2, n=5, m1=6, m2=18, masked=True),
    "empty": Case(batch=2, n=5, m1=5, m2=5, causal=True, masked=True, empty=True),
    "strided": Case(batch=2, heads=2, group=2, n=5, m1=5, m2=5, strided=True, d=7, dv=9),
}


@pytest.mark.parametrize("form", FORMS)
def test_attention(form):
    check_attention(FORMS[form])


@pytest.mark.parametrize("form", ["full", "causal-cross", "multi-query"])
def test_attention_half(form):
    check_attention(replace(FORMS[form], dtype=HALF))


def test_attention_double():
    check_attention(replace(FORMS["group"], dtype=DOUBLE))


@pytest.mark.parametrize("form", ["cross", "causal-cross", "group", "empty"])
def test_strassen(form):
    check_attention(FORMS[form], "strassen")


OPERATED = {
    "one": FORMS["one"],
    "full": FORMS["full"],
    "long": Case(n=129, m1=3, m2=17, d=6, dv=5),
    "causal": Case(n=63, m1=63, m2=9, causal=True, d=6, dv=5),
    "windows": Case(group=3, n=21, m1=21, m2=21, window=(5, 18), d=5),
    "empty": FORMS["empty"],
    "strided": FORMS["strided"],
    "half": replace(FORMS["multi-query"], dtype=HALF),
    "double": replace(FORMS["cross"], dtype=DOUBLE),
}


@pytest.mark.parametrize("form", OPERATED)
@pytest.mark.parametrize("kind", ["trilinear", "strassen"])
def test_registered_operators(kind, form):
    check_attention(OPERATED[form], kind, by_operators)


@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
def test_maximum(size, monkeypatch):
    """Without a maximum where the bound is small, with one elsewhere: equal, also if forced."""
    case = Case(n=18, m1=9, m2=18, causal=True, size=size)
    inputs = case.inputs()
    results = []
    for limit in (configs.BOUND, -1.0):
        monkeypatch.setattr(configs, "BOUND", limit)
        out, lse = torch.empty(1, 1, 18, 8), torch.empty(1, 1, 18)
        fwd.attention(*inputs, None, None, out, lse, case.scale, True, ())
        results.append((out, lse))
    bound = launch.bounds(inputs[0], launch.Pairs.of(inputs[1:3], inputs[3:], (), True, ()), 0.35)
    x = logits("trilinear", *double(inputs[:3]), 0.35).abs()
    assert (bound.double() >= x.amax((-1, -2)) * (1 - 1e-6)).all()
    assert bool((bound < 40).any()) == (size < 3.0)
    truth = dense("trilinear", double(inputs), case.allowed([None, None]), case.scale)
    limit = 2**-23 * (8 + float(x.max()))  # of exp(X), for X rounded to fp32
    for out, lse in results:
        assert ((out - truth[0]).norm() / truth[0].norm()) < limit
        assert ((lse - truth[1]).abs() < limit).all()


def test_same_bits_twice():
    case = FORMS["group"]
    inputs = case.inputs()
    lse, delta = torch.randn(2, 6, 6) + 5, torch.randn(2, 6, 6)
    dout = torch.randn(2, 6, 6, 8)
    both = []
    for _ in range(2):
        found = [torch.empty_like(t) for t in inputs]
        bwd.attention(dout, *inputs, lse, delta, None, None, *found, 0.3, True, ())
        both.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("where", ["q", "k1", "k2", "v1", "masked"])
def test_nan(where):
    """A NaN reaches the rows that read it and no other; from a masked key, none."""
    case = Case(n=20, m1=10, m2=10, causal=True)
    q, k1, k2, v1, v2 = case.inputs()
    masks = [None, None]
    for t in {"q": [q], "k1": [k1], "k2": [k2], "v1": [v1], "masked": [k1, v1]}[where]:
        t[0, 0, 7, 2] = math.nan
    if where == "masked":
        masks[0] = torch.arange(10)[None] != 7
    out, lse = torch.empty(1, 1, 20, 8), torch.empty(1, 1, 20)
    fwd.attention(q, k1, k2, v1, v2, *masks, out, lse, 0.3, True, ())
    hit = torch.arange(20) == 7 if where == "q" else torch.arange(20) >= 7
    hit = torch.zeros(20, dtype=torch.bool) if where == "masked" else hit
    assert torch.equal(out.isnan().any(-1)[0, 0], hit)
    assert torch.equal(lse.isnan()[0, 0], hit if where != "v1" else torch.zeros_like(hit))


# ---------------------------------------------------------------------------------- polynomial


def coefficients_of(case: Case, degree: int) -> Tensor:
    taylor = torch.tensor([1 / math.factorial(t) for t in range(degree + 1)])
    heads = case.heads * case.group
    return (taylor * (1 + 0.2 * torch.rand(case.batch, heads, degree + 1))).to(case.acc)


def check_polynomial(case: Case, degree: int) -> None:
    inputs, masks = case.inputs(), case.masks()
    q, keys, values = inputs[0], inputs[1:3], inputs[3:]
    given = [m for m in masks if m is not None]
    c, allowed = coefficients_of(case, degree), case.allowed(masks)

    def function(tensors):
        return dense_polynomial(c, tuple(tensors), allowed, case.scale)

    truth = function(double(inputs))
    wide = function([t.to(case.acc) for t in inputs])
    numerator = torch.empty(*q.shape[:3], case.dv, dtype=case.acc)
    denominator = torch.empty(q.shape[:3], dtype=case.acc)
    setting = (case.scale, case.causal, case.window)
    fwd.polynomial(q, keys, values, given, c, numerator, denominator, *setting)
    assert_parity(numerator, truth[0], wide[0], scale=truth[0].abs().max(), what="numerator")
    assert_parity(denominator, truth[1], wide[1], what="denominator")

    z = denominator.abs().mean()
    upstream = (
        torch.randn(numerator.shape).to(case.acc) / z,
        torch.randn(q.shape[:3]).to(case.acc) / z,
    )
    true = gradients(function, double(inputs), upstream)
    measure = [
        g.to(case.dtype) for g in gradients(function, [t.to(case.acc) for t in inputs], upstream)
    ]
    found = [torch.empty_like(t) for t in inputs]
    bwd.polynomial(*upstream, q, keys, values, given, c, found[0], found[1:3], found[3:], *setting)
    for what, mine, t, e in zip(NAMES, found, true, measure, strict=True):
        assert_parity(mine, t, e, gradient=True, scale=t.abs().max(), what=what)


@pytest.mark.parametrize(
    ("form", "degree"),
    [("one", 2), ("full", 2), ("cross", 3), ("masked", 1), ("empty", 2), ("windows-turned", 2),
     ("window-first", 3), ("causal-cross", 4), ("strided", 2)],
)  # fmt: skip
def test_polynomial(form, degree):
    case = replace(FORMS[form], scale=0.1)
    check_polynomial(case, degree)
    if form in ("full", "masked", "causal-cross"):
        check_polynomial(replace(case, dtype=HALF), degree)


@pytest.mark.parametrize(
    "case",
    [
        Case(n=33, m1=33, m2=33, causal=True, d=5, dv=7, scale=0.1),
        Case(group=2, n=18, m1=11, m2=30, causal=True, d=4, masked=True, batch=2, scale=0.1),
        Case(n=18, m1=18, m2=18, causal=True, d=4, dtype=HALF, scale=0.1),
    ],
    ids=["segments", "group-cross-masked", "half"],
)
def test_polynomial_in_segments(case, monkeypatch):
    """Causal: pairs of keys before the segment through carried sums, the others by logits."""
    monkeypatch.setattr(configs, "segment", lambda dv: 16)
    check_polynomial(case, 2)


def test_polynomial_of_order_4():
    torch.manual_seed(1)
    q = torch.randn(1, 2, 9, 5)
    keys, values = [[torch.randn(1, 1, m, 5) for m in (7, 6, 8)] for _ in range(2)]
    c = torch.tensor([1.0, 1.0, 0.5, 0.2]).expand(1, 2, 4).contiguous()

    def function(tensors):
        q, keys, values = tensors[0], tensors[1:4], tensors[4:]
        keys, values = ([t.repeat_interleave(2, 1) for t in s] for s in (keys, values))
        x = 0.2 * torch.einsum("bhia,bhja,bhka,bhla->bhijkl", q, *keys)
        weight = sum(c.to(x.dtype)[0, 0, t] * x**t for t in range(4))
        return torch.einsum("bhijkl,bhja,bhka,bhla->bhia", weight, *values), weight.sum((3, 4, 5))

    inputs = (q, *keys, *values)
    truth = function(double(inputs))
    numerator, denominator = torch.empty(1, 2, 9, 5), torch.empty(1, 2, 9)
    fwd.polynomial(q, keys, values, [], c, numerator, denominator, 0.2, False, ())
    for mine, true in zip((numerator, denominator), truth, strict=True):
        assert (mine - true).norm() / true.norm() < 1e-6
    upstream = (torch.randn(1, 2, 9, 5), torch.randn(1, 2, 9))
    found = [torch.empty_like(t) for t in inputs]
    bwd.polynomial(
        *upstream, q, keys, values, [], c, found[0], found[1:4], found[4:], 0.2, False, ()
    )
    for mine, true in zip(found, gradients(function, double(inputs), upstream), strict=True):
        assert (mine - true).norm() / true.norm() < 2e-6
    with pytest.raises(ValueError, match="more than 2 key sets without causal and window only"):
        fwd.polynomial(q, keys, values, [], c, numerator, denominator, 0.2, True, ())


def test_monomials():
    """C(D + g, g) of them, whose weighted sum is the power of a sum."""
    index, weight, size = method.monomials(5, 3, torch.device("cpu"))
    assert index.shape == (3, math.comb(8, 3))
    x = torch.cat((torch.rand(5, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)))
    products = x[index.long()].prod(0) * weight
    for power in range(4):
        torch.testing.assert_close(products[size == power].sum(), x[:5].sum() ** power)


def test_rows_beyond_32_bits_are_refused():
    q = torch.empty(1, 1, 1, 4).expand(1, 1, 2**31, 4)
    k = torch.empty(1, 1, 1, 4)
    with pytest.raises(ValueError, match="q: expected at most 1073737728 rows a key head"):
        fwd.attention(q, k, k, k, k, None, None, q, q[..., 0], 1.0, False, ())
