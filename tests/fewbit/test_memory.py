"""Bytes kept for backward: what the operations promise, and how ``saved_bytes`` counts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.fewbit_cases import DTYPES, EAGER, SMOOTH, public, samples, variant_id
from sublimate import fewbit
from sublimate.memory import SavedBytes, saved_bytes
from torch import nn

N = 32 * 100
#: Besides the codes a node keeps its levels (2**bits numbers of at most 8 bytes) and nothing else.
CONSTANT = 16 * 8


def leaf(shape, dtype=torch.float32, seed=0):
    return samples(shape, dtype, seed, odd=False).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize(
    ("name", "bits"), [(n, b) for n in EAGER for b in ((1, 2, 3, 4) if n in SMOOTH else (1,))]
)
def test_codes_and_nothing_else(lane, name, bits, dtype):
    """n b / 8 bytes and a constant, whatever the dtype of x; eager keeps n elements."""
    params = (0.1, 0.2) if name == "threshold" else ()
    f = partial(public(name), bits=bits, backend=lane.backend)
    for n in (N, N + 1):
        x = lane.put(leaf(n, dtype)).detach().requires_grad_()
        kept = saved_bytes(f, x, *params)
        codes = -(-n // 32) * 4 * bits
        assert codes <= kept <= codes + CONSTANT
        assert kept.tensors[0][1:] == ((codes // 4,), torch.int32, codes)
        eager = saved_bytes(EAGER[name], x, *params)
        assert eager >= n * dtype.itemsize
    assert eager / kept > dtype.itemsize * 8 / bits * 0.8


@pytest.mark.parametrize("name", ["gelu", "relu", "swiglu-up", "swiglu-gate", "callable"])
def test_nothing_without_gradient(lane, name):
    """Under no_grad, in inference mode and for inputs without grad, not one byte."""
    book = fewbit.fit_codebook(lambda t: t * t.sigmoid(), 3)
    f = {
        "gelu": partial(fewbit.gelu, backend=lane.backend),
        "relu": partial(fewbit.relu, backend=lane.backend),
        "swiglu-up": lambda x: fewbit.swiglu(x, x, backend=lane.backend),
        "swiglu-gate": lambda x: fewbit.swiglu(x, x, keep="gate", backend=lane.backend),
        "callable": lambda x: fewbit.activation(x, book, backend=lane.backend),
    }[name]
    x = lane.put(leaf(N)).detach().requires_grad_()
    assert saved_bytes(f, x) > 0
    assert saved_bytes(f, x.detach()) == 0
    assert saved_bytes(torch.no_grad()(f), x) == 0
    assert saved_bytes(torch.inference_mode()(f), x) == 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_stochastic_keeps_no_noise(lane, bits):
    x = lane.put(leaf(N)).detach().requires_grad_()
    kept = saved_bytes(partial(fewbit.silu, bits=bits, stochastic=True, backend=lane.backend), x)
    assert N * bits / 8 <= kept <= N * bits / 8 + CONSTANT


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_any_callable(lane, bits):
    book = fewbit.fit_codebook(lambda t: torch.sin(t) * t, bits)
    x = lane.put(leaf(N)).detach().requires_grad_()
    kept = saved_bytes(partial(fewbit.activation, codebook=book, backend=lane.backend), x)
    assert N * bits / 8 <= kept <= N * bits / 8 + CONSTANT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=variant_id)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_gated_units(lane, bits, dtype):
    """One branch and b bits a pair (2 + b / 8 bytes in 16 bits), a scale a row for keep="gate"."""
    rows, inner = 40, 256
    gate, up = (lane.put(leaf((rows, inner), dtype, s)).detach().requires_grad_() for s in (1, 2))
    pairs = rows * inner
    hidden = [gate * 1, up * 1]  # as in a model: neither branch is a leaf
    for f, eager in ((fewbit.swiglu, F.silu), (fewbit.geglu, F.gelu)):
        kept = saved_bytes(partial(f, bits=bits, backend=lane.backend), *hidden)
        least = pairs * (dtype.itemsize + bits / 8)
        assert least <= kept <= least + 2 * CONSTANT
        kept = saved_bytes(partial(f, bits=bits, keep="gate", backend=lane.backend), *hidden)
        assert least + 4 * rows <= kept <= least + 4 * rows + 2 * CONSTANT
        # Eager keeps gate, f(gate) and up.
        plain = saved_bytes(lambda g, u: eager(g) * u, *hidden)  # noqa: B023
        assert plain == 3 * pairs * dtype.itemsize


def test_modules_keep_their_tables_as_buffers(lane):
    """A module's levels are its own memory: only codes are counted."""
    x = lane.put(leaf(N)).detach().requires_grad_()
    module = fewbit.GELU(bits=3, backend=lane.backend).to(lane.device)
    assert saved_bytes(module, x) == N * 3 // 8


def test_a_model(lane):
    """A converted MLP keeps what eager keeps, less the activations' inputs, plus codes."""
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.SiLU(), nn.ReLU())
    model, x = model.to(lane.device), lane.put(samples((10, 32), torch.float32, odd=False))
    with torch.no_grad():
        before = saved_bytes(torch.enable_grad()(model), x)
    per = 10 * 64 * 4
    # The inputs of both Linear, of GELU and of SiLU, and the output of ReLU.
    assert before == x.nbytes + 4 * per
    fewbit.convert(model, bits=2)
    for m in model:
        if hasattr(m, "backend"):
            m.backend = lane.backend
    after = saved_bytes(model, x)
    codes = 10 * 64 // 8
    assert x.nbytes + per + 5 * codes <= after <= x.nbytes + per + 5 * codes + CONSTANT
    assert after.per_module["1"] == 2 * codes and after.per_module["3"] == 2 * codes
    assert after.per_module["0"] == x.nbytes and after.per_module["2"] == per


# ----------------------------------------------------------------------------------- the instrument


def test_eager_baseline():
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        x = leaf(1000, dtype)
        assert saved_bytes(F.gelu, x) == 1000 * size
        assert saved_bytes(lambda t: F.silu(t * 2), x) == 1000 * size


def test_shared_storage_counts_once():
    x = leaf(1000)
    assert saved_bytes(lambda t: t * t, x) == 4000
    assert saved_bytes(lambda t: F.gelu(t) + F.silu(t), x) == 4000
    assert saved_bytes(lambda t: F.gelu(t[:500]) + F.silu(t[500:]), x) == 4000
    y = leaf(1000, seed=1)
    assert saved_bytes(lambda s, t: F.gelu(s) + F.gelu(t), x, y) == 8000


def test_views_count_their_whole_storage():
    """What stays alive is the storage, not the slice of it that was saved."""
    x = leaf(1000)
    kept = saved_bytes(lambda t: F.gelu((t * 2)[::10]), x)
    assert kept == 4000
    assert kept.tensors[0][1] == (100,)


def test_parameters_and_buffers_are_not_counted():
    linear = nn.Linear(16, 8)
    x = samples((4, 16), torch.float32, odd=False)
    assert saved_bytes(linear, x) == x.nbytes
    assert saved_bytes(linear, x.clone().requires_grad_()) == x.nbytes
    frozen = nn.Linear(16, 8).requires_grad_(False)
    assert (
        saved_bytes(frozen, x.clone().requires_grad_()) == 0
    )  # its weight is saved, and is its own
    weight = nn.Parameter(torch.ones(16, 16))
    assert saved_bytes(lambda t: t @ weight, x) == x.nbytes  # a parameter without a module
    norm = nn.BatchNorm1d(16).eval()
    assert saved_bytes(norm, x.clone().requires_grad_()) <= x.nbytes + 2 * 16 * 4


def test_per_module_and_table():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, x):
            return F.silu(self.inner(x) + 1)

    x = samples((4, 8), torch.float32, odd=False)
    kept = saved_bytes(Twice(), x)
    assert isinstance(kept, SavedBytes) and isinstance(kept, int)
    assert kept.per_module == {"inner.0": 128, "inner.1": 128, "": 128}
    assert sum(size for *_, size in kept.tensors) == kept == 384
    lines = kept.table().splitlines()
    assert lines[-1].split() == ["total", "384"]
    assert any(line.split() == ["inner.1", "128"] for line in lines)
    assert any("no module" in line for line in lines)


def test_keywords_and_gradients_on():
    """Gradients are on for the run; keyword arguments go through; nothing stays hooked."""
    x = leaf(100)
    with torch.no_grad():
        assert saved_bytes(F.gelu, x, approximate="tanh") == 400
    model = nn.Sequential(nn.GELU())
    saved_bytes(model, x)
    assert not model._forward_hooks and not model[0]._forward_pre_hooks
    y = F.gelu(x)
    y.sum().backward()
    assert x.grad is not None


def test_an_error_in_the_model_leaves_no_hooks():
    class Broken(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    model = nn.Sequential(nn.GELU(), Broken())
    with pytest.raises(ZeroDivisionError):
        saved_bytes(model, leaf(10))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_empty_tensors_keep_nothing():
    assert saved_bytes(partial(fewbit.gelu, backend="cpu"), leaf(0)) <= CONSTANT
    assert saved_bytes(F.gelu, leaf(0)) == 0
