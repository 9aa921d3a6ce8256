"""Every backend against the definition: forward by the rule, codes and gradient exactly."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.fewbit_cases import (
    CANCELLING,
    CODED,
    DTYPES,
    EAGER,
    EXACT,
    SMOOTH,
    VARIANTS,
    code_of,
    corners,
    default_tables,
    exact_product,
    odd_tables,
    packed_of,
    public,
    samples,
    truth_of,
    upstream,
    variant_id,
)
from helpers.parity import assert_parity, assert_same_bits
from sublimate.fewbit import reference as R

ops = torch.ops.sublimate
N = 1021


def check(lane, name, params, bits, x, grad, tables=None):
    """Forward, packed words and gradient of one call; x and grad as they are, on the CPU."""
    borders, codes, levels = tables or default_tables(name, params, bits, x.dtype)
    leaf = lane.put(x).detach().requires_grad_()
    y = public(name)(leaf, *params, bits=bits, backend=lane.backend)
    assert y.stride() == torch.empty_like(x).stride()
    eager = EAGER[name](x, *params)
    if lane.backend == "reference":  # is eager, and as good as eager in 16 bits
        assert_same_bits(y, eager, f"{name} forward")
    else:
        scale = x.nan_to_num(0.0, 0.0, 0.0) if name in CANCELLING else None
        assert_parity(y, truth_of(name, params, x), eager, scale=scale, what=f"{name} forward")
    code = code_of(name, params, x, borders, codes)
    flat = R.flatten(code, R.dense_order(x))
    assert_same_bits(packed_of(y), R.pack(flat, bits), f"{name} packed")
    (dx,) = torch.autograd.grad(y, leaf, lane.put(grad))
    assert_same_bits(dx, exact_product(code, levels, grad), f"{name} gradient")
    if levels[code].count_nonzero() > 0:
        assert (dx.cpu()[dx.cpu().isfinite()] != 0).any()
    return y, dx


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize(("name", "params", "bits"), CODED, ids=variant_id)
def test_function(lane, name, params, bits, dtype):
    x = samples(N, dtype)
    k = corners(name, params, dtype)
    x[: len(k)] = k
    check(lane, name, params, bits, x, upstream(N, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_borders_hit_exactly(lane, name, bits, dtype):
    """Elements equal to a border of the default codebook, and the elements beside it."""
    borders, codes, _ = default_tables(name, (), bits, dtype)
    at = borders.to(dtype)
    up, down = (torch.nextafter(at, torch.full_like(at, v)) for v in (math.inf, -math.inf))
    x = torch.cat([at, up, down, at])
    # The left interval owns the border: where both neighbours differ in code, so do at and up.
    assert torch.equal(code_of(name, (), at, borders, codes), R.encode(at, borders, codes))
    check(lane, name, (), bits, x, upstream(x.numel(), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize(("name", "params"), [v for v in VARIANTS if v[0] in EXACT], ids=variant_id)
def test_exact_gradient_is_torchs(lane, name, params, dtype):
    """One bit loses nothing: torch's own gradient, bit for bit, corners and infinities included."""
    k = corners(name, params, dtype)
    x = torch.cat([k, samples(N, dtype, seed=5)])
    x = x[~x.isnan()]  # torch's vector and scalar paths differ there
    x = torch.cat([x, k])  # in the vectorised part and in the tail
    grad = upstream(x.numel(), dtype)
    eager = x.clone().requires_grad_()
    (due,) = torch.autograd.grad(EAGER[name](eager, *params), eager, grad)
    leaf = lane.put(x).requires_grad_()
    y = public(name)(leaf, *params, backend=lane.backend)
    (dx,) = torch.autograd.grad(y, leaf, lane.put(grad))
    if name == "hardsigmoid" and dtype == torch.float64:
        # torch's factor 1/6 is an fp32 constant even in fp64.
        torch.testing.assert_close(dx.cpu(), due, rtol=2**-24, atol=0)
    else:
        assert torch.equal(dx.cpu() + 0.0, due + 0.0)  # -0 is 0: torch masks, we multiply
    assert torch.equal(y.detach().cpu() + 0.0, EAGER[name](x, *params) + 0.0) or name in (
        "hardsigmoid",
    )
    assert (dx != 0).sum() > 50


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("name", EAGER)
def test_nan_and_infinity(lane, name, dtype):
    """Values float64 eager gives; the gradient takes the codes of the last and the end intervals.

    (In fp32 torch's vectorised gelu gives NaN at +inf; float64 and we give inf.)
    """
    params = (0.0, 0.0) if name == "threshold" else ()
    special = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        torch.finfo(dtype).max,
        torch.finfo(dtype).min,
    ]
    x = torch.tensor(special * 10, dtype=dtype)
    eager = EAGER[name](x, *params)
    due = eager if lane.backend == "reference" else EAGER[name](x.double(), *params).to(dtype)
    leaf = lane.put(x).requires_grad_()
    y = public(name)(leaf, *params, bits=1, backend=lane.backend)
    got = y.detach().cpu()
    rows = zip(x.tolist(), got.tolist(), due.tolist(), eager.tolist(), strict=True)
    for value, result, expected, torchs in rows:
        same = result == expected or (math.isnan(result) and math.isnan(expected))
        # The largest numbers may overflow inside, where they do in torch (hardswish: 6x / 6).
        same = same or (math.isfinite(value) and result == torchs)
        close = math.isfinite(expected) and math.isclose(
            result, expected, rel_tol=4 * torch.finfo(dtype).eps, abs_tol=1e-30
        )
        assert same or close, f"{name}({value}) = {result}, expected {expected}"
    borders, codes, levels = default_tables(name, params, 1, dtype)
    code = code_of(name, params, x, borders, codes)
    (dx,) = torch.autograd.grad(y, leaf, torch.full_like(leaf, 1.5))
    assert_same_bits(dx, exact_product(code, levels, torch.full_like(x, 1.5)))
    # A NaN or infinite gradient passes through every level but 0, and 0 * inf is NaN.
    for odd in (math.nan, math.inf, -math.inf):
        y = public(name)(leaf, *params, bits=1, backend=lane.backend)
        (dx,) = torch.autograd.grad(y, leaf, torch.full_like(leaf, odd))
        assert_same_bits(dx, exact_product(code, levels, torch.full_like(x, odd)))
        assert not dx.isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("name", EAGER)
def test_subnormals(lane, name, dtype):
    """The smallest numbers of the dtype, both signs: no flush to zero in value or code."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    steps = torch.arange(-200, 201, dtype=torch.float64)
    x = (steps * tiny).to(dtype)
    params = (0.0, 0.0) if name == "threshold" else ()
    y, _ = check(lane, name, params, 1, x, upstream(x.numel(), dtype))
    if name in ("relu", "tanh", "softsign", "hardtanh"):
        assert_same_bits(y[201:] + 0.0, x[201:])


# --------------------------------------------------------------------------------------- the format


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize(
    ("bits", "m"), [(1, 0), (1, 1), (1, 3), (2, 3), (2, 9), (3, 6), (3, 31), (4, 15), (4, 255)]
)
def test_any_table(kernel, bits, m, dtype):
    """Words equal the reference's for tables of every length, elements on borders included."""
    tables = borders, codes, levels = odd_tables(bits, m, dtype)
    x = samples(N, dtype)
    x[:m] = borders.to(dtype)[:N]
    x[m : 2 * m] = torch.nextafter(x[:m], torch.full_like(x[:m], math.inf))
    moved = [kernel.put(t) for t in (x, *tables)]
    expected = R.pack(R.encode(x, borders, codes), bits)
    _, packed = ops.fewbit_fwd(*moved, None, "mish", 0.0, 0.0, bits, kernel.backend)
    assert_same_bits(packed, expected)
    assert_same_bits(ops.fewbit_encode(*moved, None, bits, kernel.backend), expected)
    grad = upstream(N, dtype)
    dx = ops.fewbit_bwd(kernel.put(grad), packed, moved[3], [1], bits, kernel.backend)
    assert_same_bits(dx, exact_product(R.encode(x, borders, codes), levels, grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_one_packs_the_other_reads(kernel, calls, bits, dtype):
    """Packed by this backend and read by the CPU and the reference, and the other way round."""
    n, tables = 2 * 512 + 45, odd_tables(bits, 7, dtype)
    borders, codes, levels = tables
    x, grad = samples(n, dtype), upstream(n, dtype)
    code = R.encode(x, borders, codes)
    due = exact_product(code, levels, grad)
    _, ours = ops.fewbit_fwd(
        *(kernel.put(t) for t in (x, *tables)), None, "gelu", 0.0, 0.0, bits, kernel.backend
    )
    assert calls[kernel.backend] == 1
    _, theirs = ops.fewbit_fwd(x, *tables, None, "gelu", 0.0, 0.0, bits, "cpu")
    assert_same_bits(ours, theirs)
    assert_same_bits(ops.fewbit_bwd(grad, ours.cpu(), levels, [1], bits, "cpu"), due)
    assert_same_bits((R.decode(ours.cpu(), levels, n, bits) * grad.to(levels)).to(dtype), due)
    for words in (theirs, R.pack(code, bits)):
        moved = (kernel.put(t) for t in (grad, words, levels))
        assert_same_bits(ops.fewbit_bwd(*moved, [1], bits, kernel.backend), due)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=variant_id)
def test_every_16_bit_number(lane, dtype):
    """All 65,536 numbers widened, and products with them narrowed: halfway cases, overflow, NaN."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    leaf = lane.put(x).requires_grad_()
    # threshold at -inf with value -inf is the identity: load, store, nothing between.
    y = public("threshold")(leaf, -math.inf, -math.inf, backend=lane.backend)
    assert_same_bits(y, x)
    # Factors that put products halfway between neighbours, just off it, under- and overflow.
    half = 2.0 ** (-11 if dtype == torch.float16 else -8)
    levels = [1 + half, 1 - half, 1 + half * (1 + 2**-9), 1 + half * (1 - 2**-9), 1 / 3, 2.0**-9]
    levels += [-1.7, 2.0**9, 1.5, 0.75, 3.0, 2.0**-15, 1 + 3 * half, -(1 + half), 0.0, 1.0]
    levels = torch.tensor(levels)
    borders, codes = torch.empty(0), torch.zeros(1, dtype=torch.uint8)
    for first in range(16) if lane.backend != "reference" else (0, 2, 9, 11):
        codes[0] = first
        if lane.backend == "reference":
            out = R.activation(leaf, lambda t: t, borders, codes, levels)
            (dx,) = torch.autograd.grad(out, leaf, lane.put(x))
        else:
            moved = [lane.put(t) for t in (x, borders, codes, levels)]
            packed = ops.fewbit_encode(*moved, None, 4, lane.backend)
            dx = ops.fewbit_bwd(moved[0], packed, moved[3], [1], 4, lane.backend)
        assert_same_bits(dx, (x.float() * levels[first]).to(dtype), f"times {levels[first]}")
