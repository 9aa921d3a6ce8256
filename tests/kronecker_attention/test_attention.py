"""Exact attention on every backend: O, LSE and the five gradients, held to float64."""

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
from helpers.parity import assert_parity
from sublimate.kronecker_attention import kronecker_attention, reference, strassen_attention

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("out", "lse", "dq", "dk1", "dk2", "dv1", "dv2")


def call(v: Variant, backend: str, scale: float, device: str = "cpu"):  # type: ignore[no-untyped-def]
    first, second = (None if m is None else m.to(device) for m in masks(v))

    def function(q, k1, k2, v1, v2):
        return kronecker_attention(
            q, k1, k2, v1, v2, scale=scale, causal=v.causal, window=v.window, mask1=first,
            mask2=second, return_lse=True, backend=backend,
        )  # fmt: skip

    return function


def check(v, dtype, lane, leaves, g, dlse):
    """A lane against float64 and eager's einsum in the same dtype, with both upstream gradients."""
    scale = leaves[0].shape[-1] ** -0.5
    there = [lane.put(t) for t in leaves]
    found = gradients(
        call(v, lane.backend, scale, lane.device), there, [lane.put(g), lane.put(dlse)]
    )
    wide = [t.double() for t in leaves]
    out, lse = reference.attention(*wide, *masks(v), scale=scale, causal=v.causal, window=v.window)
    delta = (g.double() * out).sum(-1) - dlse.double()
    truth = [
        out,
        lse,
        *reference.attention_gradients(
            g.double(), *wide, lse, delta, *masks(v), scale=scale, causal=v.causal,
            window=v.window,
        ),
    ]  # fmt: skip
    reads = ~(lse == -math.inf)

    def eager(q, k1, k2, v1, v2):
        out, lse = dense(q, (k1, k2), (v1, v2), allowed(v), scale)
        return out, torch.where(reads, lse, torch.zeros_like(lse))

    plain = gradients(eager, leaves, [g, dlse.to(dtype)])
    plain[1] = torch.where(reads, plain[1], -math.inf).to(found[1].dtype)
    # Where eager's gradients are NaN (rows without keys), it allows nothing.
    plain = [torch.where(p.isnan(), t.to(p.dtype), p) for p, t in zip(plain, truth, strict=True)]
    sizes = term_sizes(v, wide, g.double(), scale, lse, delta)
    # A weight exp(X) is off by the rounding of X, of at most the largest logit in magnitude.
    logit = float(sizes[1].max())
    sizes = [sizes[0] * (1 + logit), sizes[1], *(s * (1 + logit) for s in sizes[2:])]
    for name, got, due, e, size in zip(NAMES, found, truth, plain, sizes, strict=True):
        rounding = torch.finfo(got.dtype).eps * size.max()
        if (due.abs() <= 1e-12 * size).all():
            # One pair for each row: dS is the difference of two equal numbers, each rounded.
            assert (got.cpu().double().abs() <= 8 * rounding).all(), name
            continue
        assert_parity(got, due, e, gradient=name[0] == "d", scale=size, what=name)


def term_sizes(v, wide, g, scale, lse, delta):
    """Sizes of the sums whose terms cancel in each result: what its rounding is measured by."""
    size = [t.abs() for t in wide]
    p = dense_weights(v, wide, scale)
    groups = wide[0].shape[1] // wide[1].shape[1]
    k1, k2, v1, v2 = (t.repeat_interleave(groups, 1) for t in size[1:])
    dp = torch.einsum("bhid,bhjd,bhkd->bhijk", g.abs(), v1, v2)
    ds = p * (dp + delta.abs()[..., None, None]) * scale
    fold = lambda t: t.unflatten(1, (-1, groups)).sum(2)  # noqa: E731
    logits = torch.einsum(
        "bhia,bhja,bhka->bhijk", wide[0], *(t.repeat_interleave(groups, 1) for t in wide[1:3])
    )
    largest = scale * logits.abs().amax((3, 4))
    return [
        torch.einsum("bhijk,bhjd,bhkd->bhid", p, v1, v2),
        torch.maximum(lse.abs().nan_to_num(posinf=0.0), largest),
        torch.einsum("bhijk,bhja,bhka->bhia", ds, k1, k2),
        fold(torch.einsum("bhijk,bhia,bhka->bhja", ds, size[0], k2)),
        fold(torch.einsum("bhijk,bhia,bhja->bhka", ds, size[0], k1)),
        fold(torch.einsum("bhijk,bhid,bhkd->bhjd", p, g.abs(), v2)),
        fold(torch.einsum("bhijk,bhid,bhjd->bhkd", p, g.abs(), v1)),
    ]


def dense_weights(v, wide, scale):
    groups = wide[0].shape[1] // wide[1].shape[1]
    k1, k2 = (t.repeat_interleave(groups, 1) for t in wide[1:3])
    first, second = allowed(v)
    seen = (first[..., None] & second[:, :, None])[:, None]
    logits = scale * torch.einsum("bhia,bhja,bhka->bhijk", wide[0], k1, k2)
    flat = logits.masked_fill(~seen, -math.inf).flatten(3).softmax(-1).nan_to_num(0.0)
    return flat.reshape(logits.shape)


@pytest.fixture(params=BACKENDS, ids=lanes.lane_id)
def lane(request, calls):
    """Each backend in turn. Fails afterwards if another backend did its work."""
    yield request.param
    ran = {name for name in ("cpu", "cuda", "triton") if calls[name]}
    due = {request.param.backend} - {"reference"}
    assert ran == due, f"{request.param.id}: kernels of {ran or 'none'} ran"


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("v", VARIANTS, ids=name_of)
def test_parity(v, dtype, lane):
    *leaves, g = inputs(v, dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    dlse = normal(g.shape[:3], 9, acc)
    check(v, dtype, lane, leaves, g, dlse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_small_logits(dtype, lane):
    """Nearly uniform weights, where a fixed maximum will do."""
    v = Variant("", n=35, heads=(2, 1), dims=(32, 32), batch=1)
    *leaves, g = inputs(v, dtype, 0.1)
    check(v, dtype, lane, leaves, g, normal(g.shape[:3], 9, torch.float32))


@pytest.mark.parametrize("form", [kronecker_attention, strassen_attention])
@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("size", [0.2, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_read_nothing(dtype, size, hidden, form, lane):
    """No key of one set before the fifth, under a fixed maximum and a running one: 0, -inf, 0.

    A hidden key once weighed the least subnormal number, and rows of nothing but such averaged."""
    v = Variant("", n=40, heads=(2, 1), batch=1, causal=True)
    *leaves, g = (lane.put(t).requires_grad_() for t in inputs(v, dtype, size))
    mask = lane.put(torch.arange(40)[None] >= 5)
    out, lse = form(
        *leaves, causal=True, **{f"mask{hidden + 1}": mask}, return_lse=True, backend=lane.backend
    )
    grads = torch.autograd.grad(out, leaves, g)
    assert (out[:, :, :5] == 0).all() and (lse[:, :, :5] == -math.inf).all()
    assert lse[:, :, 5:].isfinite().all() and (grads[0][:, :, :5] == 0).all()
    assert (grads[1 + hidden][:, :, :5] == 0).all() and (grads[3 + hidden][:, :, :5] == 0).all()
    assert all(t.isfinite().all() for t in grads)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_large_logits(dtype, accuracy, lane):
    """Logits of +-600, where a maximum must be taken: weights are off by the logits' rounding."""
    v = Variant("", n=35, heads=(2, 1), dims=(32, 32), batch=1)
    *leaves, g = inputs(v, dtype, 4.0)
    found = gradients(
        call(v, lane.backend, 0.2, lane.device), [lane.put(t) for t in leaves], [lane.put(g)]
    )
    wide = [t.double() for t in leaves]
    due = gradients(
        lambda q, k1, k2, v1, v2: dense(q, (k1, k2), (v1, v2), allowed(v), 0.2), wide, [g.double()]
    )
    assert due[1].max() > 500
    for name, a, b in zip(NAMES, found, due, strict=True):
        error = (a.cpu().double() - b).norm() / b.norm()
        assert error < accuracy, f"{name}: {error:.2g}"


def layouts(q, k1, k2, v1, v2, g):
    """The same numbers in the memory orders that users make."""
    everything = (q, k1, k2, v1, v2)
    by_position = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in everything]  # B, N, H, D
    packed = torch.cat([t.transpose(1, 2) for t in everything], -1)
    widths = [t.shape[-1] for t in everything]
    sliced = [t.transpose(1, 2) for t in packed.split(widths, -1)]  # of one projection
    inner = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in everything]  # last stride N
    return {"by position": by_position, "slices of one": sliced, "inner": inner}


@pytest.mark.parametrize("kind", ["by position", "slices of one", "inner", "expanded"])
def test_strides(kind, lane):
    v = Variant("", n=18, heads=(3, 3), dims=(12, 12), causal=True)
    *leaves, g = (lane.put(t) for t in inputs(v, torch.float32))
    if kind == "expanded":
        leaves = [t[:1, :1].expand(2, 3, -1, -1) for t in leaves]
        views = leaves
    else:
        views = layouts(*leaves, g)[kind]
    plain = [t.contiguous() for t in leaves]
    found, due = (
        gradients(call(v, lane.backend, 0.3, lane.device), ts, [g]) for ts in (views, plain)
    )
    for name, a, b in zip(NAMES, found, due, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")
    if kind == "by position":
        assert found[0].transpose(1, 2).is_contiguous(), "the output has not the layout of q"
    # An expanded upstream gradient, as sum() makes it.
    one = lane.put(torch.ones((), dtype=torch.float32)).expand_as(g)
    found, due = (
        gradients(call(v, lane.backend, 0.3, lane.device), views, [up])
        for up in (one, one.contiguous())
    )
    for a, b in zip(found, due, strict=True):
        assert torch.equal(a, b)


def test_position_major_input_is_not_copied(calls):
    """(B, N, H, D) by transpose goes to the kernel as it is: nothing is allocated but O and LSE."""
    from torch.profiler import ProfilerActivity, profile

    v = Variant("", n=96, heads=(4, 4), dims=(32, 32), batch=1)
    leaves = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs(v, torch.float32)[:5]]
    function = call(v, "cpu", 0.2)
    function(*leaves)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function(*leaves)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    taken = [e.nbytes() for e in events if e.nbytes() > 0]
    assert sum(taken) < 1.05 * 4 * (leaves[0].numel() + 4 * 96) and calls["cpu"] == 2


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)])
def test_empty(shape):
    b, h, n, m = shape
    for backend in ("cpu", "reference"):
        q, k, t = torch.ones(b, h, n, 4), torch.ones(b, h, m, 4), torch.ones(b, h, m, 5)
        out, lse, *grads = gradients(
            lambda *x, backend=backend: kronecker_attention(*x, return_lse=True, backend=backend),
            (q, k, k, t, t), [torch.ones(b, h, n, 5)],
        )  # fmt: skip
        assert out.shape == (b, h, n, 5) and (out == 0).all() and (lse == -math.inf).all()
        assert all((g == 0).all() for g in grads)


def test_gradcheck():
    v = Variant("", n=4, lengths=(3, 5), dims=(3, 2), heads=(2, 1), causal=True, batch=1)
    leaves = [t.requires_grad_() for t in inputs(v)[:5]]
    mask = torch.tensor([[False, True, True]])
    for backend in ("cpu", "reference"):

        def both(*t, backend=backend):
            out, lse = kronecker_attention(
                *t, causal=True, window=(0, 3), mask1=mask, return_lse=True, backend=backend
            )
            return out, lse[:, :, 1:]

        assert torch.autograd.gradcheck(both, leaves)


def test_lse_alone_has_gradients(lane):
    v = Variant("", n=20, heads=(2, 1), padding="rows", causal=True)
    *leaves, _ = (lane.put(t) for t in inputs(v))
    f = call(v, lane.backend, 0.3, lane.device)
    reads = lane.put((allowed(v)[0].any(-1) & allowed(v)[1].any(-1))[:, None].expand(-1, 2, -1))
    dlse = lane.put(normal((2, 2, 20), 3, torch.float64))
    leaves = [t.requires_grad_() for t in leaves]
    due_function = lambda q, k1, k2, v1, v2: dense(  # noqa: E731
        q.cpu(), (k1.cpu(), k2.cpu()), (v1.cpu(), v2.cpu()), allowed(v), 0.3
    )[1]
    got = torch.autograd.grad(f(*leaves)[1][reads], leaves[:3], dlse[reads])
    due = torch.autograd.grad(due_function(*leaves)[reads.cpu()], leaves[:3], dlse[reads].cpu())
    for a, b in zip(got, due, strict=True):
        torch.testing.assert_close(a.cpu(), b.nan_to_num(0.0))


def test_is_deterministic(lane):
    v = Variant("", n=65, heads=(4, 1), batch=1)
    *leaves, g = (lane.put(t) for t in inputs(v, torch.float32))
    f = call(v, lane.backend, 0.3, lane.device)
    first, second = (gradients(f, leaves, [g]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_reaches_the_rows_that_read_it(lane):
    v = Variant("", n=40, batch=2)
    *leaves, g = (lane.put(t) for t in inputs(v, torch.float32))
    for at in range(5):
        dirty = [t.clone() for t in leaves]
        dirty[at][1, 0, 11, 2] = math.nan
        out, lse, *_ = gradients(call(v, lane.backend, 0.3, lane.device), dirty, [g])
        hit = out[1, 0].isnan().any(-1)
        assert hit[11] if at == 0 else hit.all()
        assert hit.sum() == (1 if at == 0 else 40)
        assert not out[0].isnan().any() and not out[1, 1].isnan().any()
        assert lse[1, 0].isnan().any() == (at < 3)


def test_padded_nan_reaches_nothing(lane):
    v = Variant("", n=40, padding="both", dims=(9, 9))
    first, second = masks(v)
    *leaves, g = inputs(v, torch.float32)
    dirty = [t.clone() for t in leaves]
    for at, mask in ((1, first), (2, second), (3, first), (4, second)):
        dirty[at][~mask[:, None, :, None].expand_as(dirty[at])] = math.nan
    f = call(v, lane.backend, 0.3, lane.device)
    found, due = (gradients(f, [lane.put(t) for t in ts], [lane.put(g)]) for ts in (dirty, leaves))
    for a, b in zip(found, due, strict=True):
        assert torch.equal(a, b)


# ----------------------------------------- defects of public kernels: each of them a test of ours


def test_lse_is_the_natural_logarithm(lane):
    """Theirs stored max2 + ln(sum), off by up to 4.7; the backward read it as ln."""
    v = Variant("", n=33, dims=(64, 64), heads=(1, 1), batch=1)
    *leaves, _ = inputs(v, torch.float32, 1.0)
    _, lse = call(v, lane.backend, 0.125, lane.device)(*(lane.put(t) for t in leaves))
    due = dense(*_wide(leaves), allowed(v), 0.125)[1]
    assert (lse.cpu() - due).abs().max() < 1e-4 and due.abs().max() > 5


def _wide(leaves):
    q, k1, k2, v1, v2 = (t.double() for t in leaves)
    return q, (k1, k2), (v1, v2)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
def test_every_key_head_is_read(heads, lane):
    """Theirs ignored the stride of key heads: right for one, off by 1.2 for four."""
    v = Variant("", n=19, heads=heads)
    *leaves, g = inputs(v)
    found = gradients(
        call(v, lane.backend, 0.2, lane.device), [lane.put(t) for t in leaves], [lane.put(g)]
    )
    groups = heads[0] // heads[1]
    for h in range(heads[0]):
        alone = [leaves[0][:, h : h + 1], *(t[:, h // groups, None] for t in leaves[1:])]
        q, ks, vs = _wide(alone)
        out, _ = dense(q, ks, vs, allowed(v), 0.2)
        torch.testing.assert_close(found[0][:, h : h + 1].cpu(), out)


@pytest.mark.parametrize("window", [(1, 1), (5, 40), (32, 7), (3, 0), (100, 100)])
def test_backward_of_any_window(window, lane):
    """Theirs asserted w2 == 32; gradients of ours against differences of the dense formula."""
    v = Variant("", n=41, window=window, causal=True, dims=(6, 6))
    *leaves, g = inputs(v)
    f = call(v, lane.backend, 0.4, lane.device)
    found = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
    due = gradients(
        lambda q, k1, k2, v1, v2: dense(q, (k1, k2), (v1, v2), allowed(v), 0.4)[0], leaves, [g]
    )
    for a, b in zip([found[0], *found[2:]], due, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_batch_strides_of_the_upstream_gradient(lane):
    """Theirs addressed delta by dO's batch stride: out of bounds from the second batch on."""
    v = Variant("", n=12, batch=5)
    *leaves, _ = (lane.put(t) for t in inputs(v))
    wide = lane.put(normal((5, 2, 12, 48), 4, torch.float64))
    g = wide[..., 16:32]
    f = call(v, lane.backend, 0.3, lane.device)
    for a, b in zip(gradients(f, leaves, [g]), gradients(f, leaves, [g.contiguous()]), strict=True):
        assert torch.equal(a, b)


def test_not_causal_is_full_attention(lane):
    """Theirs with causal=False was neither full nor masked."""
    v = Variant("", n=50, heads=(1, 1), batch=1)
    *leaves, _ = inputs(v)
    out, _ = call(v, lane.backend, 0.3, lane.device)(*(lane.put(t) for t in leaves))
    at = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    q, k1, k2, v1, v2 = leaves
    turned = (q, k1[:, :, at], k2[:, :, at.flip(0)], v1[:, :, at], v2[:, :, at.flip(0)])
    other, _ = call(v, lane.backend, 0.3, lane.device)(*(lane.put(t) for t in turned))
    torch.testing.assert_close(out, other)


@pytest.mark.parametrize("n", [1, 17, 65, 130])
@pytest.mark.parametrize("m", [1, 31, 64, 97])
def test_grids_cover_every_key(n, m, lane):
    """Theirs sized the grid of one key set by the query block: keys past it had no gradient."""
    v = Variant("", n=n, lengths=(m, 98 - m), dims=(4, 4), heads=(1, 1), batch=1)
    *leaves, g = inputs(v)
    f = call(v, lane.backend, 0.3, lane.device)
    found = gradients(f, [lane.put(t) for t in leaves], [lane.put(g)])
    due = gradients(
        lambda q, k1, k2, v1, v2: dense(q, (k1, k2), (v1, v2), allowed(v), 0.3)[0], leaves, [g]
    )
    for a, b in zip([found[0], *found[2:]], due, strict=True):
        torch.testing.assert_close(a.cpu(), b)
