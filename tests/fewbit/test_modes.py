"""Tables are made once and kept: the mode of the first call must not stay in them."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from helpers.fewbit_cases import samples
from helpers.parity import assert_same_bits
from sublimate import fewbit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

_fresh = itertools.count(1)


def calls(backend):
    """Calls whose tables no other test has made: a new parameter, or emptied caches."""
    k = next(_fresh) / 1024
    from sublimate.fewbit import codebook, gated

    gated._cached_normal_tables.cache_clear()
    codebook._default.cache_clear()
    codebook._default_gated.cache_clear()
    book = fewbit.fit_codebook("gelu", 2, std=1 + k)
    gated_book = fewbit.fit_gated_codebook("silu", 2, std=1 + k)
    options = {"backend": backend}
    return {
        "default": lambda x: fewbit.gelu(x, **options),
        "parameters": lambda x: fewbit.elu(x, 1 + k, **options),
        "exact": lambda x: fewbit.leaky_relu(x, k, **options),
        "stochastic": lambda x: fewbit.silu(x, stochastic=True, seed=3, **options),
        "codebook": lambda x: fewbit.gelu(x, bits=2, codebook=book, **options),
        "gated": lambda x: fewbit.swiglu(x, x * 2, **options),
        "gated-gate": lambda x: fewbit.geglu(x, x * 2, keep="gate", **options),
        "gated-codebook": lambda x: fewbit.swiglu(x, x, bits=2, codebook=gated_book, **options),
    }


KINDS = list(calls("cpu"))


def under_inference_mode(f, x):
    with torch.inference_mode():
        f(x)


def under_fake_tensors(f, x):
    mode = FakeTensorMode(
        allow_non_fake_inputs=True
    )  # the tables are real, as captured constants are
    with mode:
        y = f(mode.from_tensor(x))
    assert y.shape == x.shape


def under_grad(f, x):
    torch.func.grad(lambda t: f(t).sum())(x)


def under_two_transforms(f, x):
    torch.func.vjp(lambda t: torch.func.vjp(f, t)[0], x)


def under_a_default_device(f, x):
    with torch.device("meta"):
        f(x)


def under_no_grad(f, x):
    with torch.no_grad():
        f(x)


FIRST = [
    under_inference_mode, under_fake_tensors, under_grad, under_two_transforms,
    under_a_default_device, under_no_grad,
]  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("first", FIRST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_training_after(kind, first, backend):
    x = samples(100, torch.float32, odd=False)
    due = x.clone().requires_grad_()
    calls(backend)[kind](due).sum().backward()
    f = calls(backend)[kind]
    first(f, x)
    leaf = x.clone().requires_grad_()
    f(leaf).sum().backward()
    if kind in ("default", "stochastic", "gated", "gated-gate"):
        assert_same_bits(leaf.grad, due.grad)
    assert leaf.grad.count_nonzero() > 90 and leaf.grad.isfinite().all()


def test_non_strict_export_of_a_functional_call():
    """It traces under fake tensors, without Dynamo."""

    class Model(nn.Module):
        def forward(self, x):
            return fewbit.mish(x, backend="cpu")

    calls("cpu")
    x = samples((4, 6), torch.float32, odd=False)
    exported = torch.export.export(Model(), (x,), strict=False)
    assert_same_bits(exported.module()(x), fewbit.mish(x, backend="cpu"))


@pytest.mark.parametrize(
    "make", [fewbit.GELU, lambda: fewbit.ELU(0.4), lambda: fewbit.SiLU(bits=2)]
)
def test_modules_made_on_meta(make):
    """Deferred initialisation: no data until to_empty, and then the right tables, not garbage."""
    due = make()
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), make())
    assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
    for m in (module, copy.deepcopy(module)):
        m.to_empty(device="cpu")
        for name, table in due.named_buffers():
            assert_same_bits(getattr(m[1], name), table)
    with torch.device("meta"):
        module = make()
    module.load_state_dict(due.state_dict(), assign=True)
    for name, table in due.named_buffers():
        assert_same_bits(getattr(module, name), table)


def test_to_empty_keeps_a_fitted_codebook():
    module = fewbit.GELU()
    module.codebook = fewbit.fit_codebook("gelu", 3, std=4.0)
    due = {k: v.clone() for k, v in module.state_dict().items()}
    module.to_empty(device="cpu")
    assert due.keys() == module.state_dict().keys()
    for name, table in module.state_dict().items():
        assert_same_bits(table, due[name])
    module.to("meta").to_empty(device="cpu")
    for name, table in module.state_dict().items():
        assert_same_bits(table, due[name])


def test_other_default_dtype():
    """A default dtype of float64 changes neither tables nor results."""
    x = samples(100, torch.float32, odd=False)
    results = []
    for dtype in (torch.float32, torch.float64):
        with _default_dtype(dtype) if dtype != torch.float32 else nullcontext():
            found = {kind: f(x) for kind, f in calls("cpu").items()}
            module = fewbit.GELU(bits=3)
            assert module.levels.dtype == torch.float32
            found["module"] = module(x)
            results.append(found)
    for kind in KINDS:
        if kind not in ("parameters", "exact"):
            assert_same_bits(results[0][kind], results[1][kind], kind)


class _default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)
