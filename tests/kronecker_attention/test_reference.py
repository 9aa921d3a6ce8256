"""The reference against the definition, published examples, closed forms and differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.kronecker_cases import (
    VARIANTS,
    Variant,
    allowed,
    dense,
    gradients,
    inputs,
    masks,
    name_of,
    normal,
)  # fmt: skip
from sublimate.kronecker_attention import reference

EXAMPLES = json.loads((Path(__file__).parent / "examples.json").read_text())["tiny_case"]
WIDE = torch.float64


def example(name):
    return torch.tensor(EXAMPLES["inputs"][name], dtype=WIDE)[None, None]


@pytest.mark.parametrize(("name", "causal"), [("full", False), ("causal", True)])
def test_published_example(name, causal):
    """Output, LSE and gradients of a case computed by another program (numpy, differences)."""
    leaves = [example(n) for n in ("Q", "K1", "K2", "V1", "V2")]
    out, lse, *grads = gradients(
        lambda *t: reference.attention(*t, scale=2**-0.5, causal=causal), leaves, [example("G")]
    )
    due = EXAMPLES[name]
    torch.testing.assert_close(out[0, 0], torch.tensor(due["out"], dtype=WIDE))
    torch.testing.assert_close(lse[0, 0], torch.tensor(due["lse"], dtype=WIDE))
    for kind, tolerance in (("finite_difference_for_loss_sum(out*G)", 1e-9), ("analytic", 1e-12)):
        if f"grad_{kind}" not in due:
            continue
        for grad, key in zip(grads, ("Q", "K1", "K2", "V1", "V2"), strict=True):
            expected = torch.tensor(due[f"grad_{kind}"][key], dtype=WIDE)
            torch.testing.assert_close(grad[0, 0], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("degree", [1, 2])
def test_published_polynomial(degree):
    due = EXAMPLES["taylor_factored_full"][str(degree)]
    c = torch.tensor([1 / math.factorial(j) for j in range(degree + 1)], dtype=WIDE)[None, None]
    keys, values = [example("K1"), example("K2")], [example("V1"), example("V2")]
    sums = reference.polynomial(example("Q"), keys, values, None, c, scale=2**-0.5)
    out = reference.divide(*sums, WIDE)
    torch.testing.assert_close(out[0, 0], torch.tensor(due["out"], dtype=WIDE))
    assert reference.rank(2, degree) == due["rank"]


@pytest.mark.parametrize("v", VARIANTS, ids=name_of)
def test_definition(v):
    """O, LSE and all gradients against the einsum over every logit."""
    q, k1, k2, v1, v2, g = inputs(v)
    dlse = normal(q.shape[:3], 9, WIDE)
    leaves, scale = (q, k1, k2, v1, v2), q.shape[-1] ** -0.5
    call = lambda *t: reference.attention(  # noqa: E731
        *t, *masks(v), scale=scale, causal=v.causal, window=v.window
    )
    due = lambda q, k1, k2, v1, v2: dense(q, (k1, k2), (v1, v2), allowed(v), scale)  # noqa: E731
    reads = (allowed(v)[0].any(-1) & allowed(v)[1].any(-1))[:, None]
    dlse = torch.where(reads, dlse, torch.zeros_like(dlse))
    plain = gradients(lambda *t: call(*t)[0], leaves, [g])
    truth = gradients(lambda *t: due(*t)[0].nan_to_num(0.0), leaves, [g])
    names = ("out", "dq", "dk1", "dk2", "dv1", "dv2")
    for name, a, b in zip(names, plain, truth, strict=True):
        b = b.nan_to_num(0.0)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    out, lse, *grads = gradients(call, leaves, [g, dlse])
    torch.testing.assert_close(lse, due(*leaves)[1], rtol=1e-12, atol=1e-12)
    assert not any(t.isnan().any() for t in (out, *grads))
    # The closed form of every gradient, which the backward kernels evaluate.
    delta = (g * out).sum(-1) - dlse
    closed = reference.attention_gradients(
        g, *leaves, lse, delta, *masks(v), scale=scale, causal=v.causal, window=v.window
    )
    for name, a, b in zip(names[1:], closed, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    empty = ~reads.expand(out.shape[:3])
    assert (out[empty] == 0).all() and (lse[empty] == -math.inf).all()
    assert (grads[0][empty] == 0).all()


def test_chunks_of_rows_change_nothing(monkeypatch):
    v = Variant("", n=23, lengths=(11, 14), causal=True, heads=(4, 2), padding="both")
    *leaves, g = inputs(v)
    found = []
    for chunk in (reference.CHUNK, 2000, 1):
        monkeypatch.setattr(reference, "CHUNK", chunk)
        call = lambda *t: reference.attention(*t, *masks(v), scale=0.3, causal=True)  # noqa: E731
        out, lse, *grads = gradients(call, leaves, [g])
        delta = (g * out).sum(-1)
        closed = reference.attention_gradients(
            g, *leaves, lse, delta, *masks(v), scale=0.3, causal=True
        )
        found.append([out, lse, *grads, *closed])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_memory_is_bounded_without_a_gradient():
    """No more than a chunk of logits at once: N^3 would be 1.1 GB here."""
    from torch.profiler import ProfilerActivity, profile

    q, k, v = (normal((1, 1, 512, 4), s, torch.float32) for s in range(3))
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        reference.attention(q, k, k, v, v, scale=0.5)
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert 2 * 4 * reference.CHUNK < most < 6 * 4 * reference.CHUNK < 4 * 512**3


def test_symmetry_of_the_key_sets():
    """Swapping the sets, with their values, masks and windows, changes nothing."""
    v = Variant("", n=20, lengths=(20, 31), window=(4, 9), causal=True)
    q, k1, k2, v1, v2, _ = inputs(v)
    a = reference.attention(q, k1, k2, v1, v2, scale=0.2, causal=True, window=(4, 9))
    b = reference.attention(q, k2, k1, v2, v1, scale=0.2, causal=True, window=(9, 4))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def test_order_2_is_ordinary_attention():
    q, k, _, val, _, _ = inputs(Variant("", n=12, heads=(4, 4)))
    out, _ = reference.attention_any_order(q, [k], [val], scale=0.25)
    due = torch.nn.functional.scaled_dot_product_attention(q, k, val, scale=0.25)
    torch.testing.assert_close(out, due)


def test_one_key_of_ones_lowers_the_order():
    """A second set of the one key 1 with value 1 leaves ordinary attention over the first."""
    q, k, _, val, _, _ = inputs(Variant("", n=12))
    ones = torch.ones_like(k[:, :, :1])
    out, _ = reference.attention(q, k, ones, val, torch.ones_like(val[:, :, :1]), scale=0.25)
    due = torch.nn.functional.scaled_dot_product_attention(q, k, val, scale=0.25)
    torch.testing.assert_close(out, due)


@pytest.mark.parametrize("causal", [False, True])
def test_order_4(causal):
    sizes = (7, 5, 6)
    q = normal((2, 4, 6, 3), 0, WIDE)
    keys = [normal((2, 2, m, 3), s, WIDE) for s, m in enumerate(sizes, 1)]
    values = [normal((2, 2, m, 4), s, WIDE) for s, m in enumerate(sizes, 5)]
    i = torch.arange(6)[:, None]
    allow = [
        ((torch.arange(m) <= i) if causal else torch.ones(6, m, dtype=torch.bool)).expand(2, -1, -1)
        for m in sizes
    ]
    g = normal((2, 4, 6, 4), 9, WIDE)

    def split(function):
        return lambda q, *rest: function(q, rest[:3], rest[3:])

    found = gradients(
        split(lambda *t: reference.attention_any_order(*t, scale=0.7, causal=causal)),
        (q, *keys, *values), [g],
    )  # fmt: skip
    due = gradients(split(lambda *t: dense(*t, allow, 0.7)), (q, *keys, *values), [g])
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_twice():
    """First and second derivatives, with a mask, a window and an empty row."""
    v = Variant("", n=4, lengths=(3, 4), dims=(2, 2), heads=(2, 1), causal=True, batch=1)
    leaves = [t.requires_grad_() for t in inputs(v)[:5]]
    mask = torch.tensor([[False, True, True]])
    call = lambda *t: reference.attention(  # noqa: E731
        *t, mask, None, scale=0.5, causal=True, window=(0, 3)
    )
    out = lambda *t: call(*t)[0]  # noqa: E731
    lse = lambda *t: call(*t)[1][:, :, 1:]  # noqa: E731
    for function in (out, lse):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)
    strassen = lambda *t: reference.strassen(*t, mask, None, scale=0.5, causal=True)[0]  # noqa: E731
    assert torch.autograd.gradcheck(strassen, leaves)
    c = torch.tensor([1.0, 1.0, 0.5], dtype=WIDE).expand(1, 2, 3)

    def polynomial(q, k1, k2, v1, v2):
        return reference.polynomial(
            q, (k1, k2), (v1, v2), (mask, None), c, scale=0.5, causal=True, window=(0, 3)
        )

    assert torch.autograd.gradcheck(polynomial, leaves)
    assert torch.autograd.gradgradcheck(lambda *t: polynomial(*t)[0], leaves)


def test_central_differences():
    """One random direction through all five inputs, written out."""
    v = Variant("", n=9, lengths=(7, 8), dims=(5, 3))
    *leaves, g = inputs(v)
    value = lambda ts: (reference.attention(*ts, scale=0.4)[0] * g).sum()  # noqa: E731
    _, _, *grads = gradients(lambda *t: reference.attention(*t, scale=0.4), leaves, [g])
    directions = [normal(t.shape, 20 + s, WIDE) for s, t in enumerate(leaves)]
    h = 1e-5
    ahead, behind = (
        value([t + sign * h * d for t, d in zip(leaves, directions, strict=True)])
        for sign in (1, -1)
    )
    due = sum((gr * d).sum() for gr, d in zip(grads, directions, strict=True))
    torch.testing.assert_close((ahead - behind) / (2 * h), due, rtol=1e-7, atol=1e-8)


# -------------------------------------------------------------------------------- the polynomial


@pytest.mark.parametrize(("dim", "degree"), [(1, 4), (3, 3), (4, 2), (2, 6), (5, 1)])
def test_monomials(dim, degree):
    """Their weighted products are the powers of the trilinear form, and they are C(d + g, g)."""
    q, a, b = (normal((1, 6, dim), s, WIDE) for s in range(3))
    features = [reference.monomials(t, degree) for t in (q, a, b)]
    weights, degrees = reference.multinomials(dim, degree, q)
    assert features[0].shape[-1] == weights.shape[0] == math.comb(dim + degree, degree)
    form = (q * a * b).sum(-1)
    for j in range(degree + 1):
        at = degrees == j
        power = (weights * features[0] * features[1] * features[2])[..., at].sum(-1)
        torch.testing.assert_close(power, form**j)


@pytest.mark.parametrize("v", VARIANTS, ids=name_of)
def test_polynomial_is_the_dense_one(v):
    """Factored sums equal the polynomial of every logit, with every mask; gradients too."""
    degree = 2 if v.dims[0] > 20 else 3
    if v.dims[0] > 40:
        degree = 1
    q, k1, k2, v1, v2, g = inputs(v, size=0.4)
    scale = q.shape[-1] ** -0.5
    coefficients = [1.3, 0.9, 0.7, 0.3][: degree + 1]
    c = torch.tensor(coefficients, dtype=WIDE).expand(*q.shape[:2], degree + 1)
    call = lambda q, k1, k2, v1, v2: reference.divide(  # noqa: E731
        *reference.polynomial(
            q, (k1, k2), (v1, v2), masks(v), c, scale=scale, causal=v.causal, window=v.window
        ),
        WIDE,
    )
    due = lambda q, k1, k2, v1, v2: dense(  # noqa: E731
        q, (k1, k2), (v1, v2), allowed(v), scale, coefficients
    )[0]
    found = gradients(call, (q, k1, k2, v1, v2), [g])
    for a, b in zip(found, gradients(due, (q, k1, k2, v1, v2), [g]), strict=True):
        assert not a.isnan().any()
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_polynomial_of_order_4_and_5():
    for sets in (3, 4):
        q = normal((1, 2, 5, 3), 0, WIDE, 0.5)
        keys = [normal((1, 1, 4 + m, 3), m, WIDE) for m in range(1, sets + 1)]
        values = [normal((1, 1, 4 + m, 2), 5 + m, WIDE) for m in range(1, sets + 1)]
        c = torch.tensor([1.0, 1.0, 0.5], dtype=WIDE).expand(1, 2, 3)
        for causal in (False, True):
            got = reference.divide(
                *reference.polynomial(q, keys, values, None, c, scale=0.3, causal=causal), WIDE
            )
            i = torch.arange(5)[:, None]
            allow = [
                ((torch.arange(k.shape[2]) <= i) | (not causal)).expand(1, -1, -1) for k in keys
            ]
            due, _ = dense(q, keys, values, allow, 0.3, [1.0, 1.0, 0.5])
            torch.testing.assert_close(got, due)


def test_strassen():
    v = Variant("", n=14, lengths=(9, 17), heads=(4, 2), causal=True, padding="both")
    q, k1, k2, v1, v2, g = inputs(v)
    allow = allowed(v)

    def definition(q, k1, k2, v1, v2):
        a, b, x, y = (t.repeat_interleave(2, 1) for t in (k1, k2, v1, v2))
        logits = 0.3 * (
            torch.einsum("bhid,bhjd->bhij", q, a)[..., None]
            + torch.einsum("bhjd,bhkd->bhjk", a, b)[:, :, None]
            + torch.einsum("bhkd,bhid->bhik", b, q)[:, :, :, None]
        )
        seen = (allow[0][..., None] & allow[1][:, :, None])[:, None]
        weight = logits.masked_fill(~seen, -math.inf).flatten(3).softmax(-1).nan_to_num(0.0)
        weight = torch.where(seen, weight.reshape(logits.shape), 0.0)
        return torch.einsum("bhijk,bhjd,bhkd->bhid", weight, x, y)

    call = lambda *t: reference.strassen(*t, *masks(v), scale=0.3, causal=True)[0]  # noqa: E731
    found = gradients(call, (q, k1, k2, v1, v2), [g])
    for a, b in zip(found, gradients(definition, (q, k1, k2, v1, v2), [g]), strict=True):
        torch.testing.assert_close(a, b.nan_to_num(0.0))


# ------------------------------------------------------------------------------------ corner cases


def test_masked_keys_are_never_read():
    """NaN at padded positions reaches neither an output nor a gradient."""
    v = Variant("", n=8, padding="both")
    *leaves, g = inputs(v)
    first, second = masks(v)
    clean = gradients(lambda *t: reference.attention(*t, first, second, scale=0.3), leaves, [g])
    dirty = [t.clone() for t in leaves]
    for at, mask in ((1, first), (2, second), (3, first), (4, second)):
        dirty[at][~mask[:, None, :, None].expand_as(dirty[at])] = math.nan
    found = gradients(lambda *t: reference.attention(*t, first, second, scale=0.3), dirty, [g])
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a, b)


def test_vmap():
    v = Variant("", n=7, batch=6, heads=(2, 1))
    q, k1, k2, v1, v2, _ = inputs(v)
    stacked = [t.unflatten(0, (3, 2)) for t in (q, k1, k2, v1, v2)]
    call = lambda *t: reference.attention(*t, scale=0.3)[0]  # noqa: E731
    torch.testing.assert_close(torch.vmap(call)(*stacked).flatten(0, 1), call(q, k1, k2, v1, v2))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)])
def test_empty(shape):
    b, h, n, m = shape
    q, k, val = torch.ones(b, h, n, 4), torch.ones(b, h, m, 4), torch.ones(b, h, m, 5)
    out, lse, *grads = gradients(
        lambda *t: reference.attention(*t, scale=1.0), (q, k, k, val, val),
        [torch.ones(b, h, n, 5)],
    )  # fmt: skip
    assert out.shape == (b, h, n, 5) and (out == 0).all() and (lse == -math.inf).all()
    assert all((g == 0).all() for g in grads)
