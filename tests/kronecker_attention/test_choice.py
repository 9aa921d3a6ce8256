"""Certificate, estimate and the choice of method."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from helpers.kronecker_cases import Variant, allowed, dense, inputs, masks, normal
from sublimate.kronecker_attention import (
    certificate,
    choose,
    estimated_error,
    kronecker_attention,
    polynomial_attention,
    reference,
    sampling,
)
from sublimate.kronecker_attention import coefficients as polynomials
from sublimate.kronecker_attention import plan as plan_module

WIDE = torch.float64
ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = [torch.ones(1, 64, 64, dtype=torch.bool)] * 2


def trial(seed):
    """A random problem: size of its logits, dimensions, lengths, masks, degree, coefficients."""
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    causal, padding = pick(False, False, True), pick("", "", "both")
    n = pick(5, 17, 40)
    v = Variant(
        "", n=n, lengths=(n, pick(3, 17, 33)), heads=pick((2, 2), (4, 2)), batch=pick(1, 2),
        dims=(pick(1, 3, 8), 4), causal=causal, padding=padding,
        window=pick(None, None, (0, 6), (4, 9)),
    )  # fmt: skip
    size = 10 ** float(-1.2 + 1.5 * torch.rand((), generator=draw))
    leaves = [t * size if at < 1 else t for at, t in enumerate(inputs(v, WIDE)[:5])]
    leaves = [t + normal(t.shape, seed + at, WIDE, 0.3) for at, t in enumerate(leaves)]
    return v, leaves, pick(1, 2, 3, 4, 5, 6), pick("taylor", "hermite")


def approximate(v, leaves, degree, kind):
    """(exact, polynomial) outputs, the latter with whatever denominator there is."""
    q, k1, k2, v1, v2 = leaves
    scale = q.shape[-1] ** -0.5
    options = {"scale": scale, "causal": v.causal, "window": v.window}
    exact, _ = reference.attention(*leaves, *masks(v), **options)
    c = polynomials.make(kind, degree, q, (k1, k2), masks(v), scale, WIDE)
    near = reference.divide(
        *reference.polynomial(q, (k1, k2), (v1, v2), masks(v), c, **options), WIDE
    )
    return exact, near, c


@pytest.mark.parametrize("batch", range(4))
def test_the_certificate_is_never_below_the_error(batch):
    finite = 0
    for seed in range(60 * batch, 60 * batch + 60):
        v, leaves, degree, kind = trial(seed)
        q, k1, k2, v1, v2 = leaves
        options = {"masks": masks(v), "causal": v.causal, "window": v.window}
        found = certificate(q, [k1, k2], None, degree, coefficients=kind, **options)
        exact, near, c = approximate(v, leaves, degree, kind)
        bound = found.output([v1, v2])
        error = (near - exact).abs().amax(-1)
        assert (error <= bound + 1e-13 * exact.abs().max()).all(), seed
        finite += int(bound.isfinite().all())
        # The radius, the weights, and their sign, over all allowed pairs.
        groups = v.heads[0] // v.heads[1]
        x = torch.einsum(
            "bhia,bhja,bhka->bhijk", q, *(t.repeat_interleave(groups, 1) for t in (k1, k2))
        )
        x = x * q.shape[-1] ** -0.5
        first, second = allowed(v)
        x = torch.where((first[..., None] & second[:, :, None])[:, None], x, 0.0).flatten(3)
        assert (x.abs().amax(-1) <= found.radius).all(), seed
        p = sum(c[:, :, j, None, None] * x**j for j in range(degree + 1))
        ratio = p * (-x).exp()
        assert ((ratio.amin(-1) > 0) | ~found.positive).all(), seed
        sure = found.relative < 1
        spread = (ratio.amax(-1) - ratio.amin(-1)) / (ratio.amax(-1) + ratio.amin(-1))
        assert (spread[sure] <= found.relative[sure]).all(), seed
        assert (found.relative[~found.positive] == math.inf).all()
    assert finite > 20, "the certificate knows next to nothing"


def test_the_certificate_is_tight_where_the_norms_are():
    """One key of one sign: the logit is the radius, and the error of its weight is e exactly."""
    q = torch.full((1, 1, 3, 4), 0.5, dtype=WIDE)
    k = torch.tensor([[0.8] * 4, [-0.8] * 4], dtype=WIDE)[None, None]
    one = torch.ones_like(k[:, :, :1])
    found = certificate(q, [k, one], 1.0, 2)
    torch.testing.assert_close(found.radius, torch.full((1, 1, 3), 1.6, dtype=WIDE))
    p = lambda x: (1 + x + x * x / 2) * math.exp(-x)  # noqa: E731
    low, high = p(1.6), p(-1.6)
    e = (high - low) / (high + low)
    torch.testing.assert_close(found.relative, torch.full((1, 1, 3), e, dtype=WIDE))
    assert certificate(4 * q, [k, one], 1.0, 3).output([k, one]).isinf().all()


def test_the_radius_of_other_orders():
    q, *keys = (normal((1, 2, 6, 5), s, WIDE) for s in range(4))
    x = torch.einsum("bhia,bhja,bhka,bhla->bhijkl", q, *keys).abs().flatten(3).amax(-1)
    radius = certificate(q, keys, 1.0, 2).radius
    assert (x <= radius).all() and (radius < 10 * x).all()


def test_the_estimate_is_within_a_factor_of_three():
    within = trials = 0
    for seed in range(300, 420):
        v, leaves, degree, kind = trial(seed)
        if v.n < 17:
            continue
        exact, near, _ = approximate(v, leaves, degree, kind)
        true = float((near - exact).norm() / exact.norm())
        q, k1, k2, v1, v2 = leaves
        found = estimated_error(
            q, [k1, k2], [v1, v2], None, degree, coefficients=kind, masks=masks(v),
            causal=v.causal, window=v.window,
        )  # fmt: skip
        if true > 1e-13:
            trials += 1
            within += true / 3 <= found <= 3 * true
    assert trials > 60 and within >= 0.95 * trials, (within, trials)


def test_the_estimate_in_pieces(monkeypatch):
    """A row's logits in one piece or many, and from as many rows as there are: the error itself."""
    v, leaves, degree, kind = trial(307)
    exact, near, _ = approximate(v, leaves, degree, kind)
    true = float((near - exact).norm() / exact.norm())
    q, k1, k2, v1, v2 = leaves
    for chunk in (sampling.CHUNK, 1):
        monkeypatch.setattr(sampling, "CHUNK", chunk)
        found = estimated_error(
            q, [k1, k2], [v1, v2], None, degree, coefficients=kind, masks=masks(v),
            causal=v.causal, window=v.window, rows=v.n,
        )  # fmt: skip
        assert found == pytest.approx(true, rel=1e-6)


# ------------------------------------------------------------------------------------- the choice


def problem(n=160, dim=8, size=1.0):
    q, k1, k2, v1, v2 = (normal((1, 2, n, dim), s, torch.float32) for s in range(5))
    return q * size, k1, k2, v1 + 0.3, v2 + 0.3


def test_small_logits_take_the_polynomial():
    leaves = problem(size=0.02)
    plan = choose(*leaves, tol=1e-3)
    assert plan.method == "polynomial" and plan.estimate < 1e-3 / 3 and plan.degree in (1, 2)
    assert plan.predicted_cost < choose(*leaves, tol=1e-30).predicted_cost
    assert "of the exact cost" in plan.reason and "tolerance 0.001" in plan.reason
    out, used = kronecker_attention(*leaves, tol=1e-3, return_info=True)
    exact = kronecker_attention(*leaves, method="exact")
    assert used == plan and (out - exact).norm() < 1e-3 * exact.norm()
    due = polynomial_attention(leaves[0], leaves[1:3], leaves[3:], degree=plan.degree)
    assert torch.equal(out, due)


def test_a_certified_choice_says_so():
    plan = choose(*problem(size=1e-4), tol=1e-2)
    assert plan.method == "polynomial" and "certified bound" in plan.reason
    assert plan.bound < 1e-2


def test_large_logits_take_the_exact_method():
    leaves = problem(size=4.0)
    plan = choose(*leaves, tol=1e-3)
    assert (plan.method, plan.degree, plan.bound) == ("exact", None, 0.0)
    assert "no degree" in plan.reason and "estimated" in plan.reason
    out, used = kronecker_attention(*leaves, tol=1e-3, return_info=True)
    assert used == plan and torch.equal(out, kronecker_attention(*leaves, method="exact"))


def test_short_or_wide_inputs_take_the_exact_method():
    """Where C(D + g, g) features cost more than all pairs."""
    assert choose(*problem(n=3, size=0.02), tol=0.1).method == "exact"
    plan = choose(*problem(n=40, dim=64, size=0.02), tol=1e-5)
    assert plan.method == "exact" and "costs" in plan.reason
    assert choose(*problem(n=160, dim=64, size=0.02), tol=0.1).method == "polynomial"


def test_a_narrow_window_takes_the_exact_method():
    leaves = problem(n=160, size=0.02)
    assert choose(*leaves, tol=1e-2, causal=True).method == "polynomial"
    assert choose(*leaves, tol=1e-2, window=(2, 2)).method == "exact"


def measured():
    """{(dim, n): {degree: ms}} of the committed table, degree 0 exact."""
    found = {}
    with (ROOT / "bench/kronecker_attention/break_even.csv").open() as file:
        for row in csv.DictReader(file):
            at = found.setdefault((int(row["dim"]), int(row["n"])), {})
            at[int(row["degree"])] = float(row["ms"])
    return found


def predicted(dim, n):
    q = torch.empty(1, 4, n, dim, device="meta")
    exact = plan_module.exact_cost(q, (q, q), dim, False, (), "cpu")
    rest = {g: plan_module.polynomial_cost(q, (q, q), dim, g, False, "cpu") for g in range(1, 5)}
    return {g: 1e3 * c / plan_module.CPU_RATE for g, c in ({0: exact} | rest).items()}


def test_the_plan_takes_what_was_measured_to_be_faster():
    """Every entry is predicted within a factor of 2.5 (exact: 1.5), and where the measured times of
    the methods differ by more than 1.6, the faster one is taken."""
    clear = {True: 0, False: 0}
    for (dim, n), times in measured().items():
        model = predicted(dim, n)
        for degree, ms in times.items():
            assert 1 / 2.5 < model[degree] / ms < 2.5, (dim, n, degree)
        if 0 not in times:
            continue
        assert 1 / 1.5 < model[0] / times[0] < 1.5
        for degree in set(times) - {0}:
            ratio = times[degree] / times[0]
            if not 1 / 1.6 < ratio < 1.6:
                assert (model[degree] < model[0]) == (ratio < 1), (dim, n, degree)
                clear[ratio < 1] += 1
    assert clear[True] >= 25 and clear[False] >= 10, clear


def test_the_readme_tells_the_measured_table():
    text = (ROOT / "python/sublimate/kronecker_attention/README.md").read_text()
    table = measured()
    for dim in (16, 32, 64):
        for n in (64, 128, 256, 512):
            row = [f"{table[dim, n][g]:.3g}" if g in table[dim, n] else "" for g in range(5)]
            assert f"| {dim} | {n} | {' | '.join(row)} |" in text, (dim, n, row)


def test_a_tighter_tolerance_takes_a_higher_degree():
    leaves = problem(n=200, dim=4, size=0.2)
    tolerances = (0.3, 3e-3, 3e-4)
    degrees = [choose(*leaves, tol=t).degree for t in tolerances]
    assert degrees == sorted(degrees) and degrees[0] < degrees[-1]
    for t, g in zip(tolerances, degrees, strict=True):
        exact = kronecker_attention(*leaves, method="exact")
        out = kronecker_attention(*leaves, tol=t)
        assert (out - exact).norm() < t * exact.norm()
        assert choose(*leaves, tol=t, degree=g).degree == g


def test_nothing_given_is_exact():
    leaves = problem(size=0.02)
    out, plan = kronecker_attention(*leaves, return_info=True)
    assert plan.method == "exact" and plan.reason == "no tolerance was given: exact"
    assert torch.equal(out, kronecker_attention(*leaves, method="exact"))
    _, plan = kronecker_attention(*leaves, method="exact", return_info=True)
    assert plan.reason == "asked for"
    _, plan = kronecker_attention(*leaves, method="exact", return_info=True, backend="reference")
    assert plan.predicted_cost == 2.0 * 2 * 160**3 * 16  # FLOPs: nothing else is known


def test_the_plan_of_a_given_degree():
    leaves = problem(size=0.1)
    _, lse, plan = kronecker_attention(
        *leaves, method="polynomial", degree=2, return_lse=True, return_info=True
    )
    assert (plan.method, plan.degree) == ("polynomial", 2) and plan.estimate < plan.bound
    assert lse.shape == (1, 2, 160)
    exact = [t.double() for t in leaves]
    due, _ = dense(
        exact[0], exact[1:3], exact[3:], [torch.ones(1, 160, 160, dtype=torch.bool)] * 2, 8**-0.5
    )
    out = kronecker_attention(*leaves, method="polynomial", degree=2)
    true = float((out - due).norm() / due.norm())
    assert plan.estimate / 3 < true < 3 * plan.estimate


def test_empty():
    q, k = torch.ones(1, 1, 0, 4), torch.ones(1, 1, 3, 4)
    assert choose(q, k, k, k, k, tol=0.1).method == "exact"
    q, k = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 0, 4)
    out, plan = kronecker_attention(q, k, k, k, k, tol=0.1, return_info=True)
    assert plan.method == "exact" and (out == 0).all()
    assert polynomial_attention(q, [k, k], [k, k]).eq(0).all()
    assert (certificate(q, [k, k]).output([k, k]) == 0).all()
