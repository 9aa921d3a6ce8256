"""The polynomial method: parity of every backend, published accuracy, order k, hybrid."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import lanes
from helpers.kronecker_cases import (
    BACKENDS,
    VARIANTS,
    Variant,
    allowed,
    dense,
    gradients,
    inputs,
    masks,
    name_of,
    normal,
)
from helpers.parity import RMS
from sublimate.kronecker_attention import coefficients as polynomials
from sublimate.kronecker_attention import (
    kronecker_attention,
    polynomial_attention,
    reference,
)

WIDE = torch.float64
DTYPES = [torch.float32, torch.float16, torch.bfloat16, WIDE]
NAMES = ("out", "dq", "dk1", "dk2", "dv1", "dv2")


@pytest.fixture(params=BACKENDS, ids=lanes.lane_id)
def lane(request, calls):
    """Each backend in turn. Fails afterwards if another backend did its work."""
    yield request.param
    ran = {name for name in ("cpu", "cuda", "triton") if calls[name]}
    due = {request.param.backend} - {"reference"}
    assert ran == due, f"{request.param.id}: kernels of {ran or 'none'} ran"


def polynomial(v, degree, backend, scale, device="cpu", kind="taylor"):
    first, second = (None if m is None else m.to(device) for m in masks(v))

    def function(q, k1, k2, v1, v2):
        return polynomial_attention(
            q, [k1, k2], [v1, v2], degree=degree, coefficients=kind, scale=scale, causal=v.causal,
            window=v.window, masks=[first, second], backend=backend,
        )  # fmt: skip

    return function


def degree_of(v):
    """Even degrees, of a rank that a test can afford."""
    return 2 if v.dims[0] > 12 else 4


SMALL = [v for v in VARIANTS if v.dims[0] <= 40]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("v", SMALL, ids=name_of)
def test_parity(v, dtype, lane):
    *leaves, g = inputs(v, dtype, 0.5)
    degree, scale = degree_of(v), leaves[0].shape[-1] ** -0.5
    f = polynomial(v, degree, lane.backend, scale, lane.device)
    found = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
    c = polynomials.taylor(degree)

    def definition(q, k1, k2, v1, v2):
        return dense(q, (k1, k2), (v1, v2), allowed(v), scale, c)[0]

    wide = [t.double() for t in leaves]
    truth = gradients(definition, wide, [g.double()])
    sizes = term_sizes(v, wide, g, c, scale)
    for name, got, due, size in zip(NAMES, found, truth, sizes, strict=True):
        error = (got.cpu().double() - due.nan_to_num(0.0)).abs()
        # 2 g factors of a feature, its coefficient, three sums: each rounded in the kernel's dtype.
        unit = torch.finfo(dtype).eps
        assert (error <= 4 * (degree + 2) * unit * size + torch.finfo(dtype).tiny).all(), name
        limit = RMS[dtype][name[0] == "d"] * size.square().mean().sqrt()
        assert error.square().mean().sqrt() <= limit, name
        assert got.dtype == dtype and not got.isnan().any()


def term_sizes(v, wide, g, c, scale):
    """Of each result, the sum of the magnitudes of the terms that the factored form adds up.

    Features are signed and cancel in its sums, so that its rounding is measured by the same sums
    with every input, and every upstream gradient, replaced by its magnitude.
    """
    first, second = allowed(v)
    seen = (first[..., None] & second[:, :, None])[:, None]
    groups = v.heads[0] // v.heads[1]

    def sums(q, k1, k2, v1, v2):
        k1, k2, v1, v2 = (t.repeat_interleave(groups, 1) for t in (k1, k2, v1, v2))
        x = scale * torch.einsum("bhia,bhja,bhka->bhijk", q, k1, k2)
        weight = sum(a * x**j for j, a in enumerate(c)) * seen
        numerator = torch.einsum("bhijk,bhjd,bhkd->bhid", weight, v1, v2)
        return numerator, weight.sum((-1, -2))

    numerator, z = sums(*wide)
    z = torch.where(z == 0, torch.ones_like(z), z)
    out = numerator / z[..., None]
    upstream = g.double().abs() / z[..., None], (g.double() * out).abs().sum(-1) / z
    big, big_z, *grads = gradients(sums, [t.abs() for t in wide], upstream)
    return [(big + out.abs() * big_z[..., None]) / z[..., None], *grads]


def test_large_feature_counts(lane):
    """Head dimension 64 at degree 2 and 16 at degree 3: many tiles of features."""
    for dims, degree, size in (((64, 33), 2, 0.4), ((16, 16), 3, 0.1)):
        v = Variant("", n=20, dims=dims, heads=(2, 1), batch=1)
        *leaves, g = inputs(v, torch.float32, size)
        scale = 0.1
        f = polynomial(v, degree, lane.backend, scale, lane.device)
        found = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
        wide = [t.double() for t in leaves]
        due = gradients(
            lambda q, k1, k2, v1, v2, v=v, degree=degree: dense(
                q, (k1, k2), (v1, v2), allowed(v), 0.1, polynomials.taylor(degree)
            )[0],
            wide, [g.double()],
        )  # fmt: skip
        for name, a, b in zip(NAMES, found, due, strict=True):
            assert (a.cpu() - b).norm() < 1e-5 * b.norm(), name


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_every_degree(degree, lane):
    v = Variant("", n=23, dims=(4, 6), heads=(4, 2), causal=True, padding="both")
    *leaves, g = inputs(v, WIDE, 0.3)
    for kind in ("taylor", "hermite"):
        f = polynomial(v, degree, lane.backend, 0.4, lane.device, kind)
        found = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
        due = gradients(polynomial(v, degree, "reference", 0.4, kind=kind), leaves, [g])
        for name, a, b in zip(NAMES, found, due, strict=True):
            torch.testing.assert_close(a.cpu(), b, msg=lambda m, n=name: f"{n}: {m}")


def test_strides_and_layout(lane):
    v = Variant("", n=18, heads=(4, 2), dims=(6, 10), causal=True)
    *leaves, g = (lane.put(t) for t in inputs(v, WIDE, 0.4))
    f = polynomial(v, 2, lane.backend, 0.3, lane.device)
    due = gradients(f, leaves, [g])
    by_position = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in leaves]
    inner = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in leaves]
    for views in (by_position, inner):
        found = gradients(f, views, [g.transpose(1, 2).contiguous().transpose(1, 2)])
        for a, b in zip(found, due, strict=True):
            torch.testing.assert_close(a, b)
    assert gradients(f, by_position, [g])[0].transpose(1, 2).is_contiguous()


def test_lse_is_differentiable(lane):
    v = Variant("", n=12, dims=(4, 4), padding="rows", causal=True)
    *leaves, _ = inputs(v, WIDE, 0.3)
    first, second = masks(v)
    reads = (allowed(v)[0].any(-1) & allowed(v)[1].any(-1))[:, None].expand(-1, 2, -1)
    dlse = normal((2, 2, 12), 3, WIDE)[reads]
    found = []
    for backend, put in ((lane.backend, lane.put), ("dense", lambda t: t)):
        ts = [put(t).detach().requires_grad_() for t in leaves]
        if backend == "dense":
            lse = dense(ts[0], ts[1:3], ts[3:], allowed(v), 0.5, polynomials.taylor(4))[1]
        else:
            out, lse = polynomial_attention(
                ts[0], ts[1:3], ts[3:], degree=4, scale=0.5, causal=True, return_lse=True,
                masks=[put(first), put(second)], backend=backend,
            )  # fmt: skip
            assert (lse[~put(reads)] == -math.inf).all() and (out[~put(reads)] == 0).all()
        found.append(torch.autograd.grad(lse[put(reads)], ts[:3], put(dlse)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_padded_nan_reaches_nothing(lane):
    v = Variant("", n=20, padding="both", dims=(5, 5))
    first, second = masks(v)
    *leaves, g = inputs(v, WIDE, 0.4)
    dirty = [t.clone() for t in leaves]
    for at, mask in ((1, first), (2, second), (3, first), (4, second)):
        dirty[at][~mask[:, None, :, None].expand_as(dirty[at])] = math.nan
    f = polynomial(v, 2, lane.backend, 0.3, lane.device)
    found, due = (gradients(f, [lane.put(t) for t in ts], [lane.put(g)]) for ts in (dirty, leaves))
    for a, b in zip(found, due, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sets", [3, 4])
def test_higher_orders(sets, causal, calls):
    """Order k is one more factor, under causality too."""
    q = normal((2, 4, 9, 4), 0, WIDE, 0.5)
    keys = [normal((2, 2, 8 + m, 4), m, WIDE, 0.7) for m in range(1, sets + 1)]
    values = [normal((2, 2, 8 + m, 3), 9 + m, WIDE) for m in range(1, sets + 1)]
    g = normal((2, 4, 9, 3), 20, WIDE)
    i = torch.arange(9)[:, None]
    allow = [
        ((torch.arange(8 + m) <= i) | (not causal)).expand(2, -1, -1) for m in range(1, sets + 1)
    ]
    c = polynomials.taylor(2)
    due = gradients(
        lambda q, *rest: dense(q, rest[:sets], rest[sets:], allow, 0.5, c)[0],
        (q, *keys, *values), [g],
    )  # fmt: skip
    for backend in ("auto", "cpu", "reference"):
        found = gradients(
            lambda q, *rest, backend=backend: polynomial_attention(
                q, rest[:sets], rest[sets:], degree=2, causal=causal, backend=backend
            ),
            (q, *keys, *values), [g],
        )  # fmt: skip
        for a, b in zip(found, due, strict=True):
            torch.testing.assert_close(a, b)
    assert calls["cpu"] == 4


def test_gradcheck():
    v = Variant("", n=5, dims=(3, 2), heads=(2, 1), causal=True, batch=1)
    leaves = [t.requires_grad_() for t in inputs(v, WIDE, 0.3)[:5]]
    for backend in ("cpu", "reference"):
        assert torch.autograd.gradcheck(polynomial(v, 2, backend, 0.5), leaves)


# ------------------------------------------------------------------------------ published accuracy

#: (scale, dim, bound of the entries) -> relative error at degree 1 to 6; N = 128, V in [-1, 1].
TABLE = {
    ("root", 4, 0.25): (6.6e-6, 3.0e-8, 5.1e-11, 2e-13, 5e-16, 3e-16),
    ("root", 4, 0.5): (7.1e-4, 4.4e-5, 3.8e-7, 1.1e-8, 1.3e-10, 2e-12),
    ("root", 4, 1.0): (5.9e-2, 1.2e-2, 1.7e-3, 3.6e-4, 3.0e-5, 6.5e-6),
    ("root", 8, 0.25): (9.7e-6, 3.0e-8, 6.0e-11, 1e-13, 4e-16, 2e-16),
    ("root", 8, 0.5): (5.6e-4, 1.2e-5, 2.5e-7, 3.9e-9, 7.5e-11, 1e-12),
    ("root", 8, 1.0): (3.0e-2, 6.9e-3, 7.5e-4, 1.4e-4, 1.3e-5, 1.9e-6),
    ("root", 16, 0.25): (6.7e-6, 1.8e-8, 3.8e-11, 7e-14, 3e-16, 2e-16),
    ("root", 16, 0.5): (5.2e-4, 1.3e-5, 1.9e-7, 3.2e-9, 4.5e-11, 6e-13),
    ("root", 16, 1.0): (3.2e-2, 6.2e-3, 8.0e-4, 1.1e-4, 1.2e-5, 1.4e-6),
    ("one", 8, 1.0): (2.1e-1, 1.3e-1, 3.9e-2, 1.9e-2, 5.1e-3, 2.1e-3),
    ("one", 16, 0.5): (8.3e-3, 8.1e-4, 4.8e-5, 3.2e-6, 1.8e-7, 1.0e-8),
    ("one", 16, 1.0): (3.9e-1, 2.6e-1, 1.2e-1, 6.7e-2, 2.8e-2, 1.3e-2),
}


def uniform(shape, seed, bound):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(shape, generator=generator, dtype=WIDE) - 1) * bound


def errors(dim, size, scale, kind, degrees, draws=4):
    """Relative errors of the output by degree: median over draws of a law, in float64.

    p is evaluated on the logits themselves: other tests show that factored sums are the same.
    """
    found = []
    for draw in range(draws):
        q, k1, k2 = (uniform((1, 1, 128, dim), 10 * draw + s, size) for s in range(3))
        v1, v2 = (uniform((1, 1, 128, dim), 10 * draw + s, 1.0) for s in (3, 4))
        exact, _ = reference.attention(q, k1, k2, v1, v2, scale=scale)
        every = [torch.ones(1, 128, 128, dtype=torch.bool)] * 2
        row = []
        for g in degrees:
            c = polynomials.make(kind, g, q, (k1, k2), None, scale, WIDE)[0, 0].tolist()
            near, _ = dense(q, (k1, k2), (v1, v2), every, scale, c)
            row.append(float((near - exact).norm() / exact.norm()))
        found.append(row)
    return torch.tensor(found, dtype=WIDE).median(0).values


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_published_errors(case):
    """Of the same law, other draws: within a factor of 2.5, down to the rounding of float64."""
    kind, dim, size = case
    found = errors(dim, size, 1.0 if kind == "one" else dim**-0.5, "taylor", range(1, 7))
    due = torch.tensor(TABLE[case], dtype=WIDE)
    ratio = found / due
    assert ((ratio < 2.5) | (found < 2e-15)).all(), f"{found.tolist()}"
    assert ((ratio > 0.4) | (due < 2e-15)).all(), f"{found.tolist()}"


def test_hermite_is_no_worse_than_taylor():
    """At every degree from 2 on, for every law of the table with a logit above rounding."""
    gains = []
    for (kind, dim, size), taylor in TABLE.items():
        scale = 1.0 if kind == "one" else dim**-0.5
        degrees = [g for g in range(2, 7) if taylor[g - 1] > 1e-11]
        plain = errors(dim, size, scale, "taylor", degrees, draws=2)
        fitted = errors(dim, size, scale, "hermite", degrees, draws=2)
        assert (fitted <= plain * (1 + 1e-9)).all(), (kind, dim, size, fitted / plain)
        gains += (plain / fitted).tolist()
    assert max(gains) > 1.5


def test_hermite_coefficients():
    """sum_j sigma^j / j! He_j(x / sigma), by numpy; positive up to the widest sigma, not beyond."""
    import numpy as np

    x = np.linspace(-30, 30, 60001)
    for g in (2, 4, 6, 8):
        sigma = 0.7
        series = np.array([sigma**j / math.factorial(j) for j in range(g + 1)])
        due = np.polynomial.hermite_e.hermeval(x / sigma, series)
        c = polynomials.hermite(g, torch.tensor(sigma, dtype=WIDE)).numpy()
        np.testing.assert_allclose(np.polynomial.polynomial.polyval(x, c), due, rtol=1e-9)
        widest = polynomials.widest_sigma(g)
        for factor, positive in ((1.0, True), (1.05, False)):
            c = polynomials.hermite(g, torch.tensor(widest * factor, dtype=WIDE)).numpy()
            assert (np.polynomial.polynomial.polyval(x, c).min() > 0) == positive
        assert polynomials.widest_sigma(g + 1) == widest


def test_deviation_of_the_logits():
    v = Variant("", n=20, lengths=(17, 25), heads=(4, 2), padding="both")
    q, k1, k2, *_ = inputs(v)
    first, second = masks(v)
    logits = 0.3 * torch.einsum(
        "bhia,bhja,bhka->bhijk", q, k1.repeat_interleave(2, 1), k2.repeat_interleave(2, 1)
    )
    seen = (first[:, :, None] & second[:, None])[:, None, None].expand(2, 4, 20, -1, -1)
    due = torch.stack([(logits[b][seen[b]].reshape(4, -1) ** 2).mean(-1).sqrt() for b in range(2)])
    found = polynomials.logit_deviation(q, (k1, k2), (first, second), 0.3)
    torch.testing.assert_close(found, due)


# -------------------------------------------------------------------------------------- the hybrid


def test_hybrid(lane):
    """Exact inside the window, polynomial outside: each weight is one or the other."""
    v = Variant("", n=40, heads=(4, 2), dims=(5, 6), causal=True, padding="both")
    *leaves, g = inputs(v, WIDE, 0.6)
    first, second = masks(v)
    window = (7, 12)

    def f(q, k1, k2, v1, v2):
        return kronecker_attention(
            q, k1, k2, v1, v2, causal=True, window=window, method="hybrid", degree=4,
            mask1=lane.put(first), mask2=lane.put(second), return_lse=True, backend=lane.backend,
        )  # fmt: skip

    def definition(q, k1, k2, v1, v2):
        k1, k2, v1, v2 = (t.repeat_interleave(2, 1) for t in (k1, k2, v1, v2))
        x = torch.einsum("bhia,bhja,bhka->bhijk", q, k1, k2) * q.shape[-1] ** -0.5
        every, some = allowed(v), allowed(Variant("", n=40, causal=True, window=window,
                                                  padding="both"))  # fmt: skip
        far, near = ((a[..., None] & b[:, :, None])[:, None] for a, b in (every, some))
        p = sum(c * x**j for j, c in enumerate(polynomials.taylor(4)))
        weight = torch.where(near, x.exp(), p) * far
        total = weight.sum((-1, -2))
        out = torch.einsum("bhijk,bhjd,bhkd->bhid", weight, v1, v2)
        return out / torch.where(total == 0, 1.0, total)[..., None]

    out, _, *grads = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
    due = gradients(definition, leaves, [g])
    for a, b in zip((out, *grads), due, strict=True):
        torch.testing.assert_close(a.cpu(), b.nan_to_num(0.0), rtol=1e-9, atol=1e-10)
    exact = kronecker_attention(
        *leaves, causal=True, mask1=first, mask2=second, backend="reference"
    )
    far = polynomial_attention(
        leaves[0],
        leaves[1:3],
        leaves[3:],
        degree=4,
        causal=True,
        masks=[first, second],
        backend="reference",
    )
    assert (out.cpu() - exact).norm() < 0.5 * (far - exact).norm()


def test_hybrid_with_large_near_logits(lane):
    """exp(LSE) of the near part would overflow: sums are relative to it."""
    q, k, t = (normal((1, 1, 20, 4), s, torch.float32) for s in range(3))
    out = kronecker_attention(
        lane.put(q * 100), lane.put(k), lane.put(k), lane.put(t), lane.put(t), causal=True,
        window=(4, 4), method="hybrid", degree=2, scale=1.0, backend=lane.backend,
    )  # fmt: skip
    assert out.isfinite().all()
