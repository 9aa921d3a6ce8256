"""torch.library.opcheck on every registered op: schema, fake tensors, tracing, dynamic shapes."""

from __future__ import annotations

import pytest
import torch
from helpers.fewbit_cases import DTYPES, odd_tables, samples, variant_id
from sublimate.fewbit import ops as ops_module
from sublimate.fewbit import reference as R
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.sublimate
BITS = 3
LAYOUTS = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 1),
    "sliced": lambda x: x[:, ::2, 1:],
    "empty": lambda x: x[:, :0],
}


def test_every_op_is_here():
    """A new op of the family must be added to this file."""
    registered = {name for name in dir(ops_module._library) if name.startswith("fewbit")}
    schemas = {name.split("::")[1].split(".")[0] for name in _registered()}
    assert schemas | registered == {
        "fewbit_fwd", "fewbit_encode", "fewbit_bwd", "fewbit_gated_fwd", "fewbit_gated_bwd",
    }  # fmt: skip


def _registered() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return [name for name in names if name.startswith("sublimate::fewbit_")]


def inputs(lane, layout, dtype):
    x = LAYOUTS[layout](lane.put(samples((4, 6, 11), dtype, odd=False)))
    tables = [lane.put(t) for t in odd_tables(BITS, 7, dtype)]
    return x, tables


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fwd(kernel, layout, dtype):
    x, tables = inputs(kernel, layout, dtype)
    opcheck(ops.fewbit_fwd, x, *tables, None, "gelu", 0.0, 0.0, BITS, kernel.backend)


@pytest.mark.parametrize("variant", ["no-codes", "stochastic", "exact", "parameters"])
def test_fwd_variants(kernel, variant):
    x, tables = inputs(kernel, "permuted", torch.float32)
    levels = kernel.put(torch.linspace(-1, 2, 2**BITS))
    none = kernel.put(torch.empty(0)), kernel.put(torch.zeros(1, dtype=torch.uint8))
    seed = kernel.put(torch.tensor(5))
    arguments = {
        "no-codes": (*tables, None, "gelu", 0.0, 0.0, 0),
        "stochastic": (*none, levels, seed, "silu", 0.0, 0.0, BITS),
        "exact": (*none, levels[:2].clone(), None, "relu", 0.0, 0.0, 1),
        "parameters": (*tables, None, "softplus", 2.0, 3.0, BITS),
    }[variant]
    opcheck(ops.fewbit_fwd, x, *arguments, kernel.backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encode(kernel, layout, dtype):
    x, tables = inputs(kernel, layout, dtype)
    opcheck(ops.fewbit_encode, x, *tables, None, BITS, kernel.backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bwd(kernel, layout, dtype):
    x, (borders, codes, levels) = inputs(kernel, layout, dtype)
    packed = ops.fewbit_encode(x, borders, codes, levels, None, BITS, kernel.backend)
    stride = torch.empty_like(x).stride()
    opcheck(ops.fewbit_bwd, x * 1, packed, levels, stride, BITS, kernel.backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", ["up", "gate"])
def test_gated(kernel, keep, layout, dtype):
    gate, (borders, codes, levels) = inputs(kernel, layout, dtype)
    up = gate * 2 + 1
    tables = borders, codes
    opcheck(ops.fewbit_gated_fwd, gate, up, *tables, "silu", BITS, keep, kernel.backend)
    _, packed, scale = ops.fewbit_gated_fwd(gate, up, *tables, "silu", BITS, keep, kernel.backend)
    for wanted in ((True, True), (False, True)):
        opcheck(
            ops.fewbit_gated_bwd, gate * 1, up, packed, scale, levels, levels, "silu", BITS, keep,
            *wanted, kernel.backend,
        )  # fmt: skip


def opcheck(op, *arguments):
    results = torch.library.opcheck(op, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert {"test_schema", "test_faketensor", "test_aot_dispatch_dynamic"} <= set(results)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_strides_are_the_real_ones(kernel, layout):
    """Sizes and strides by the fakes, for what opcheck does not compare: every output, every op."""
    x, tables = inputs(kernel, layout, torch.bfloat16)
    cases = [
        (ops.fewbit_fwd, (x, *tables, None, "gelu", 0.0, 0.0, BITS, kernel.backend)),
        (ops.fewbit_encode, (x, *tables, None, BITS, kernel.backend)),
        (ops.fewbit_gated_fwd, (x, x * 2, *tables[:2], "silu", BITS, "gate", kernel.backend)),
    ]
    for op, arguments in cases:
        real = op(*arguments)
        mode = FakeTensorMode()
        with mode:
            fake = op(
                *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
            )
        pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
        for r, f in pairs:
            assert (r.shape, r.dtype) == (f.shape, f.dtype)
            # torch.empty_like itself disagrees with its fake about strides of nothing.
            assert r.stride() == f.stride() or r.numel() == 0
            assert (
                r.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or x.numel() == 0
            )
    assert R.words(x.numel(), BITS) == ops.fewbit_encode(*cases[1][1]).numel()


def test_meta_tensors():
    """Shapes without data, as deferred initialisation uses them."""
    x = torch.empty(3, 5, device="meta", dtype=torch.float16)
    tables = [t.to("meta") for t in odd_tables(BITS, 7, torch.float16)]
    y, packed = ops.fewbit_fwd(x, *tables, None, "gelu", 0.0, 0.0, BITS, "cpu")
    assert y.shape == (3, 5) and packed.shape == (BITS,) and y.is_meta and packed.is_meta
