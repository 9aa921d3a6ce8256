"""Random shapes, strides, dtypes, tables and functions: the CPU backend against the definition."""

from __future__ import annotations

import torch
from helpers.fewbit_cases import (
    CANCELLING,
    DTYPES,
    EAGER,
    SMOOTH,
    code_of,
    default_tables,
    exact_product,
    packed_of,
    public,
    truth_of,
)
from helpers.parity import assert_parity, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from sublimate import fewbit
from sublimate.fewbit import reference as R

ops = torch.ops.sublimate


@st.composite
def views(draw, dtype=None, dims=4):
    """A tensor of random shape and strides: permuted, sliced, flipped, expanded or offset."""
    dtype = dtype or draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 9), min_size=0, max_size=dims))
    base = [2 * s + 3 for s in shape]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = (torch.randn(base, generator=generator, dtype=torch.float64) * 3).to(dtype)
    for d, size in enumerate(shape):
        step = draw(st.integers(1, 2))
        start = draw(st.integers(0, base[d] - step * size)) if size else 0
        x = x.narrow(d, start, step * size)
        if size:
            x = x[(slice(None),) * d + (slice(None, None, step),)]
    if shape and draw(st.booleans()):
        x = x.permute(draw(st.permutations(range(len(shape)))))
    if shape and draw(st.booleans()):
        d = draw(st.integers(0, len(shape) - 1))
        if x.shape[d] > 0:
            x = x.narrow(d, 0, 1).expand(x.shape)
    return x


@st.composite
def calls(draw):
    name = draw(st.sampled_from(list(EAGER)))
    params = (draw(st.floats(-1, 1)), draw(st.floats(-9, 9))) if name == "threshold" else ()
    bits = draw(st.integers(1, 4)) if name in SMOOTH else 1
    return name, params, bits


@settings(max_examples=150)
@given(call=calls(), x=views(), data=st.data())
def test_functions(call, x, data):
    name, params, bits = call
    grad = data.draw(views(x.dtype, dims=0))  # one number, to be expanded, or
    if data.draw(st.booleans()):
        generator = torch.Generator().manual_seed(5)
        grad = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        if x.dim() > 1 and data.draw(st.booleans()):
            grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    grad = grad.expand(x.shape)
    leaf = x.detach().requires_grad_()
    y = public(name)(leaf, *params, bits=bits, backend="cpu")
    borders, codes, levels = default_tables(name, params, bits, x.dtype)
    code = code_of(name, params, x, borders, codes)
    assert_same_bits(packed_of(y), R.pack(R.flatten(code, R.dense_order(x)), bits))
    (dx,) = torch.autograd.grad(y, leaf, grad)
    assert_same_bits(dx, exact_product(code, levels, grad))
    scale = x if name in CANCELLING else None
    eager = EAGER[name](x, *params)
    # Too few elements say nothing of eager's largest error, and eager rounds tanh(x) to 16 bits
    # before it takes it off x: the truth decides.
    if x.numel() > 30:
        assert_parity(y, truth_of(name, params, x), eager, scale=scale, what=name)
    else:
        torch.testing.assert_close(y, truth_of(name, params, x).to(x.dtype))


@st.composite
def tables(draw):
    bits = draw(st.integers(1, 4))
    m = draw(st.integers(0, 40))
    width = draw(st.sampled_from([1e-3, 0.3, 5.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    borders = (torch.randn(m, generator=generator) * width).unique()
    codes = torch.randint(0, 2**bits, (len(borders) + 1,), generator=generator)
    levels = torch.randn(2**bits, generator=generator)
    return bits, borders, codes.to(torch.uint8), levels


@settings(max_examples=150)
@given(table=tables(), x=views())
def test_tables(table, x):
    """Any table, also borders that collapse in 16 bits: searchsorted in the input's dtype."""
    bits, borders, codes, levels = table
    acc = R.accumulator(x.dtype)
    packed = ops.fewbit_encode(x, borders.to(acc), codes, levels.to(acc), None, bits, "cpu")
    code = R.encode(x, borders.to(acc), codes)
    order = R.dense_order(x)
    assert_same_bits(packed, R.pack(R.flatten(code, order), bits))
    stride = torch.empty_like(x).stride()
    grad = x.flip(0) if x.dim() else x
    dx = ops.fewbit_bwd(grad, packed, levels.to(acc), stride, bits, "cpu")
    assert_same_bits(dx, exact_product(code, levels.to(acc), grad))


@settings(max_examples=100)
@given(
    x=views(),
    bits=st.integers(1, 4),
    keep=st.sampled_from(["up", "gate"]),
    unit=st.sampled_from(["swiglu", "geglu"]),
)
def test_gated(x, bits, keep, unit):
    """Views of any kind: the reference's codes, and gradients equal (up) or close (gate) to its."""
    if keep == "gate" and x.dim() == 0:
        return
    up = (x.flip(0) if x.dim() else x) * 0.5 + 1
    results = []
    for backend in ("cpu", "reference"):
        leaves = [t.detach().requires_grad_() for t in (x, up)]
        y = getattr(fewbit, unit)(*leaves, bits=bits, keep=keep, backend=backend)
        words = next(t for t in y.grad_fn.saved_tensors if t.dtype == torch.int32)
        results.append((words, *torch.autograd.grad(y, leaves, x * 2 - 1), y.detach()))
    (words, *ours), (due_words, *due) = results
    assert_same_bits(words, due_words)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(x.dtype, 2e-2)
    for k, (a, b) in enumerate(zip(ours, due, strict=True)):
        if keep == "up" and k < 2:
            assert_same_bits(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@settings(max_examples=60)
@given(x=views(), bits=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
def test_stochastic_codes_of_a_given_derivative(x, bits, seed):
    """No evaluation takes part: words equal the reference's, element i of memory, draw i."""
    from sublimate import _philox

    acc = R.accumulator(x.dtype)
    levels = torch.linspace(-4, 4, 2**bits, dtype=acc)
    v = x.clamp(-4, 4)
    none = torch.empty(0, dtype=acc), torch.zeros(1, dtype=torch.uint8)
    packed = ops.fewbit_encode(v, *none, levels, torch.tensor(seed), bits, "cpu")
    flat = R.flatten(v, R.dense_order(v)).to(acc)
    code = R.encode_stochastic(flat, levels, _philox.uniform(seed, v.numel()).to(acc))
    assert_same_bits(packed, R.pack(code, bits))
