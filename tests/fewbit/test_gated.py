"""swiglu and geglu: forward, both gradients by their formulas, and their distance to the exact."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.fewbit_cases import DTYPES, samples, upstream, variant_id
from helpers.lanes import CPU, REFERENCE
from helpers.parity import assert_parity, assert_same_bits
from sublimate import fewbit
from sublimate.fewbit import reference as R
from sublimate.fewbit.codebook import default_gated_codebook, normal_codebook
from torch import Tensor

UNITS = {
    "swiglu": (fewbit.swiglu, {}, F.silu, "silu"),
    "geglu": (fewbit.geglu, {}, F.gelu, "gelu"),
    "geglu-tanh": (
        fewbit.geglu,
        {"approximate": "tanh"},
        lambda x: F.gelu(x, approximate="tanh"),
        "gelu_tanh",
    ),
}
SHAPE = (13, 37)


def run(lane, unit, gate, up, dy, **options):
    """(y, dgate, dup) of one call; a branch without a gradient gives None."""
    f, fixed, _, _ = UNITS[unit]
    leaves = [lane.put(t).detach().requires_grad_() for t in (gate, up)]
    y = f(*leaves, **fixed, **options, backend=lane.backend)
    return y, *torch.autograd.grad(y, leaves, lane.put(dy))


def tables(unit: str, keep: str, bits: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if keep == "up":
        return default_gated_codebook(UNITS[unit][3], bits).tensors("cpu", dtype)
    borders, codes, levels = normal_codebook(bits).tensors("cpu", dtype)
    return borders, codes, levels, levels


def decoded_up(up: Tensor, borders: Tensor, codes: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """(level, scale) of each element of up, scale by row: decoded(up) = level * scale."""
    acc = R.accumulator(up.dtype)
    scale = R.row_scale(up).to(acc).reshape(*up.shape[:-1], 1)
    quotient = torch.where(scale == 0, torch.zeros_like(scale), up.to(acc) / scale)
    return levels[R.encode(quotient, borders, codes)], scale


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", UNITS)
def test_keep_up(lane, unit, bits, dtype):
    """Forward by the rule; both gradients exactly the product of the table and what was kept."""
    gate, up, dy = (samples(SHAPE, dtype, seed=s, odd=False) for s in (1, 2, 3))
    f = UNITS[unit][2]
    y, dgate, dup = run(lane, unit, gate, up, dy, bits=bits)
    wide = [t.to(R.accumulator(dtype)) for t in (gate, up, dy)]
    truth = f(gate.double()) * up.double()
    assert_parity(y, truth, f(gate) * up, scale=gate * up, what="y")
    borders, codes, levels, values = tables(unit, "up", bits, dtype)
    code = R.encode(gate, borders, codes)
    assert_same_bits(dgate, (wide[2] * wide[1] * levels[code]).to(dtype), "dgate")
    assert_same_bits(dup, (wide[2] * values[code]).to(dtype), "dup")
    assert dgate.count_nonzero() > 400 and dup.count_nonzero() > 400


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", UNITS)
def test_keep_gate(lane, unit, bits, dtype):
    """The up branch is exact: as good as eager. The gate's gradient has the decoded up in it."""
    gate, up, dy = (samples(SHAPE, dtype, seed=s, odd=False) for s in (1, 2, 3))
    f, name = UNITS[unit][2:]
    y, dgate, dup = run(lane, unit, gate, up, dy, bits=bits, keep="gate")
    g64, u64, d64 = gate.double(), up.double(), dy.double()
    assert_parity(y, f(g64) * u64, f(gate) * up, scale=gate * up, what="y")
    leaf = up.clone().requires_grad_()
    (eager,) = torch.autograd.grad(f(gate) * leaf, leaf, dy)
    assert_parity(dup, d64 * f(g64), eager, gradient=True, scale=dy * gate, what="dup")
    borders, codes, levels, _ = tables(unit, "gate", bits, dtype)
    level, scale = decoded_up(up, borders, codes, levels)
    slope = R.FUNCTIONS[name].derivative
    truth = d64 * slope(g64) * (level.double() * scale.double())
    eager = dy * slope(gate) * (level * scale).to(dtype)
    reach = dy * (level * scale).to(dtype) * (1 + gate.abs())  # f' is a difference of such terms
    assert_parity(dgate, truth, eager, gradient=True, scale=reach, what="dgate")


@pytest.mark.parametrize("unit", UNITS)
def test_slope_of_gate_is_accurate_in_the_tails(lane, unit):
    """Error of f' in units of float32: no 1 - tanh^2, which loses two digits near |x| = 5."""
    gate = torch.linspace(-12, 12, 4001).reshape(1, -1)
    up = torch.ones_like(gate)
    _, dgate, _ = run(lane, unit, gate, up, up, bits=4, keep="gate")
    slope = R.FUNCTIONS[UNITS[unit][3]].derivative(gate.double())
    got = dgate.cpu().double()
    code = got[0, -1] / slope[0, -1]  # every element of up is decoded to this
    error = (got / code - slope).abs().max()
    # x (1 - sigmoid(x)) of the reference's SiLU may be wrong by half a unit times |x|.
    assert float(error) < 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_codes_are_the_same_bytes(kernel, keep, dtype):
    gate, up = (samples((9, 71), dtype, seed=s, odd=False) for s in (1, 2))
    packed = {}
    for backend, put in ((kernel.backend, kernel.put), ("reference", lambda t: t)):
        leaves = [put(t).detach().requires_grad_() for t in (gate, up)]
        y = fewbit.swiglu(*leaves, keep=keep, backend=backend)
        saved = [t.cpu() for t in y.grad_fn.saved_tensors]
        packed[backend] = next(t for t in saved if t.dtype == torch.int32)
    assert_same_bits(packed[kernel.backend], packed["reference"])
    assert len(packed["reference"].unique()) > 20


@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize(
    "shape", [(0,), (3, 0), (0, 3), (1,), (31,), (33,), (512,), (2, 3, 5), (7, 513), (1030, 1)]
)
def test_shapes(lane, shape, keep):
    gate, up, dy = (samples(shape, torch.float32, seed=s, odd=False) for s in (1, 2, 3))
    y, dgate, dup = run(lane, "swiglu", gate, up, dy, keep=keep)
    assert y.shape == dgate.shape == dup.shape == shape and y.is_contiguous()
    assert_parity(y, F.silu(gate.double()) * up.double(), F.silu(gate) * up)
    _, due_gate, due_up = run(REFERENCE, "swiglu", gate, up, dy, keep=keep)
    if keep == "up":
        assert_same_bits(dgate, due_gate)
        assert_same_bits(dup, due_up)
    else:
        torch.testing.assert_close(dgate.cpu(), due_gate, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dup.cpu(), due_up, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "chunked", "channels_last"])
def test_strides(lane, layout, keep):
    """Views of every kind, also halves of one projection, give what their copies give."""
    whole = samples((6, 4, 10, 14), torch.float32, odd=False)
    take = {
        "transposed": lambda t: (t.transpose(1, 3), t.transpose(1, 3).flip(0)),
        "sliced": lambda t: (t[..., ::2], t[..., 1::2]),
        "expanded": lambda t: (t[:, :1].expand_as(t), t[..., :1].expand_as(t)),
        "chunked": lambda t: t.chunk(2, -1),
        "channels_last": lambda t: (t.to(memory_format=torch.channels_last), t),
    }[layout]
    gate, up = take(lane.put(whole))
    dy = lane.put(upstream(gate.shape, torch.float32))
    # torch's own functions round strided and contiguous elements apart (fp32 gelu by 3e-6).
    near = {"rtol": 1e-5, "atol": 1e-5} if lane.backend == "reference" else {"rtol": 0, "atol": 0}
    views = run(lane, "geglu", gate, up, dy, keep=keep)
    copies = run(lane, "geglu", gate.contiguous(), up.contiguous(), dy, keep=keep)
    expanded = run(lane, "geglu", gate, up, dy[..., :1].expand_as(dy), keep=keep)
    dense = run(lane, "geglu", gate, up, dy[..., :1].expand_as(dy).contiguous(), keep=keep)
    for a, b in (*zip(views, copies, strict=True), *zip(expanded, dense, strict=True)):
        torch.testing.assert_close(a, b, **near)
    assert views[0].is_contiguous()
    assert views[1].count_nonzero() > 100


@pytest.mark.parametrize("keep", ["up", "gate"])
def test_only_one_branch(lane, keep):
    gate, up, dy = (samples(SHAPE, torch.float32, seed=s, odd=False) for s in (1, 2, 3))
    both = run(lane, "swiglu", gate, up, dy, keep=keep)
    for k in (0, 1):
        inputs = [lane.put(gate), lane.put(up)]
        inputs[k] = inputs[k].clone().requires_grad_()
        y = fewbit.swiglu(*inputs, keep=keep, backend=lane.backend)
        (d,) = torch.autograd.grad(y, inputs[k], lane.put(dy))
        assert_same_bits(d, both[1 + k])
        assert d.count_nonzero() > 400


def test_without_gradient(lane):
    gate, up = (samples(SHAPE, torch.float32, seed=s, odd=False) for s in (1, 2))
    with torch.no_grad():
        y = fewbit.swiglu(
            lane.put(gate).requires_grad_(), lane.put(up).requires_grad_(), backend=lane.backend
        )
    assert y.grad_fn is None
    assert_parity(y, F.silu(gate.double()) * up.double(), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_zero_rows(lane, dtype):
    """A row of zeros has no scale: its decoded up is 0, so the gate's gradient is 0 and not NaN."""
    gate, up, dy = (samples((5, 40), dtype, seed=s, odd=False) for s in (1, 2, 3))
    up[2] = 0
    y, dgate, dup = run(lane, "swiglu", gate, up, dy, keep="gate")
    assert (y[2] == 0).all() and (dgate[2] == 0).all()
    assert dgate.isfinite().all() and dup.isfinite().all()
    assert (dup[2] != 0).all() and (dgate[1] != 0).any() and (dgate[3] != 0).any()


@pytest.mark.parametrize("keep", ["up", "gate"])
def test_nan_and_infinity_are_not_hidden(lane, keep):
    gate, up, dy = (samples((6, 8), torch.float32, seed=s, odd=False) for s in (1, 2, 3))
    gate[0, 1], up[1, 2], dy[2, 3], gate[3, 3] = (math.nan,) * 3 + (math.inf,)
    y, dgate, dup = run(lane, "swiglu", gate, up, dy, keep=keep)
    assert y[0, 1].isnan() and y[1, 2].isnan() and y[3, 3].isinf()
    assert dgate[2, 3].isnan() and dup[2, 3].isnan()
    if keep == "up":
        assert dgate[1, 2].isnan() and int(dgate.isnan().sum()) == 2
    else:
        assert dup[0, 1].isnan() and dgate[0, 1].isnan()
        assert dgate[1].isnan().all(), "a row with NaN in up has no scale"
        assert dup[3, 3].isinf()


def test_own_codebook(lane):
    """fit_gated_codebook at another spread: its tables are the ones used."""
    book = fewbit.fit_gated_codebook("silu", 2, std=3.0)
    gate, up, dy = (samples(SHAPE, torch.float32, seed=s, odd=False) * 2 for s in (1, 2, 3))
    _, dgate, dup = run(lane, "swiglu", gate, up, dy, bits=2, codebook=book)
    borders, codes, levels, values = book.tensors("cpu", torch.float32)
    code = R.encode(gate, borders, codes)
    assert_same_bits(dgate, dy * up * levels[code])
    assert_same_bits(dup, dy * values[code])
    default = run(lane, "swiglu", gate, up, dy, bits=2)
    assert (default[1] != dgate).any()


# ------------------------------------------------------------------------- documented errors

#: Relative L2 error of (dgate, dup) in percent for independent N(0, 1) gate, up and dy, by bits
#: 1-4; the table of python/sublimate/fewbit/README.md. keep="gate" is exact in up.
ERRORS = {
    ("swiglu", "up"): [(35.64, 53.17), (19.56, 28.95), (10.19, 15.37), (5.138, 8.097)],
    ("swiglu", "gate"): [(60.21, 0.0), (34.15, 0.0), (18.50, 0.0), (9.646, 0.0)],
    ("geglu", "up"): [(39.10, 51.52), (20.34, 27.71), (10.29, 14.83), (5.302, 8.012)],
    ("geglu", "gate"): [(60.20, 0.0), (34.16, 0.0), (18.50, 0.0), (9.645, 0.0)],
    ("geglu-tanh", "up"): [(39.11, 51.53), (20.35, 27.71), (10.29, 14.83), (5.301, 8.015)],
    ("geglu-tanh", "gate"): [(60.20, 0.0), (34.16, 0.0), (18.50, 0.0), (9.645, 0.0)],
}


def measured(unit: str, keep: str, bits: int) -> tuple[float, float]:
    """Against the float64 gradients of the plain product, 2**18 elements in rows of 1024."""
    generator = torch.Generator().manual_seed(20)
    gate, up, dy = (torch.randn(256, 1024, generator=generator) for _ in range(3))
    _, *ours = run(CPU, unit, gate, up, dy, bits=bits, keep=keep)
    leaves = [t.double().requires_grad_() for t in (gate, up)]
    exact = torch.autograd.grad(UNITS[unit][2](leaves[0]) * leaves[1], leaves, dy.double())
    return tuple(
        float(100 * (a.double() - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("keep", ["up", "gate"])
@pytest.mark.parametrize("unit", UNITS)
def test_gradient_errors_are_the_documented_ones(unit, keep, bits):
    found = measured(unit, keep, bits)
    for error, documented in zip(found, ERRORS[unit, keep][bits - 1], strict=True):
        assert error == pytest.approx(documented, rel=0.03, abs=2e-5)
