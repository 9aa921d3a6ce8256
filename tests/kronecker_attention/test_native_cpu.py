"""The compiled CPU kernels called directly: masks, layouts, threads, memory, guards."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import kronecker_cases as C
from helpers import kronecker_kernels as K
from helpers.kronecker_views import spread
from helpers.parity import assert_same_bits
from sublimate import NativeError, _native
from sublimate._native import kronecker_attention as N
from torch import Tensor

pytestmark = pytest.mark.skipif(
    _native.CPU.reason() is not None, reason=f"no CPU module: {_native.CPU.reason()}"
)
DTYPES = pytest.mark.parametrize("dtype", list(_native.DTYPES), ids=C.name_of)
FORMS = pytest.mark.parametrize("form", N.FORMS)


@pytest.fixture
def threads():
    """Sets the thread count for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("v", C.VARIANTS, ids=C.name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=C.name_of)
def test_exact(v, dtype):
    K.check_exact(v, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=C.name_of)
@pytest.mark.parametrize("v", C.VARIANTS[1::4], ids=C.name_of)
def test_exact_narrow(v, dtype):
    K.check_exact(v, dtype)


@pytest.mark.parametrize("v", C.VARIANTS[::3], ids=C.name_of)
def test_strassen(v):
    K.check_exact(v, torch.float64, form="strassen")
    K.check_exact(v, torch.float32, 0.4, form="strassen")


LARGE = C.Variant("large", n=70, dims=(16, 9), batch=1, causal=True)


@FORMS
@pytest.mark.parametrize("size", [1.5, 4.0])
def test_large_logits(size, form):
    """Logits from tens to thousands, which need the maximum, raised now and then. In float64:
    the logits themselves lose what they have more of digits in fp32."""
    K.check_exact(LARGE, torch.float64, size, form)


def test_the_maximum_is_raised():
    """Logits that grow along the keys, so that each tile's exceed the last's by far."""
    v = C.Variant("rising", n=9, lengths=(40, 300), dims=(4, 5), batch=1)
    tensors = C.inputs(v)
    tensors[1], tensors[2] = tensors[1].abs(), tensors[2].abs()
    tensors[2] *= torch.linspace(0.1, 150, 300, dtype=torch.float64)[:, None]
    tensors[1] *= torch.linspace(0.1, 3, 40, dtype=torch.float64)[:, None]
    tensors[0] = tensors[0].abs()
    found, truth = K.exact(v, tensors), K.exact_by_definition(v, tensors)
    assert truth[1].max() > 500
    for name, f, t in zip(K.NAMES, found, truth, strict=True):
        torch.testing.assert_close(f, t, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_fp32_near_the_static_bound():
    """Bounds on either side of the one below which no maximum is subtracted: the same result."""
    v = C.Variant("bound", n=33, dims=(8, 8), batch=1)
    for size in (0.9, 1.2, 1.5, 1.9):
        tensors = C.inputs(v, torch.float32, size)
        found, truth = K.exact(v, tensors), K.exact_by_definition(v, [t.double() for t in tensors])
        for f, t in zip(found, truth, strict=True):
            error = (f.double() - t).norm() / t.norm()
            assert error < 2e-5, (size, error)


def test_empty_rows_are_zero():
    """No key before the fifth: rows 0 to 4 give 0, their log-sum -inf, their gradients 0."""
    v = C.Variant("empty", n=12, causal=True, padding="rows", lengths=(10, 12))
    out, lse, dq, *others = K.exact(v, C.inputs(v, torch.float32))
    assert (out[:, :, :5] == 0).all() and (lse[:, :, :5] == -torch.inf).all()
    assert (dq[:, :, :5] == 0).all() and all(t.isfinite().all() for t in others)


def test_nan_reaches_the_rows_that_read_it():
    v = C.Variant("nan", n=40, causal=True, dims=(8, 8), batch=1)
    clean = K.exact(v, C.inputs(v, torch.float32))
    for which in (1, 2, 3, 4):  # a key or value at position 33
        tensors = C.inputs(v, torch.float32)
        tensors[which][:, :, 33] = torch.nan
        out = K.exact(v, tensors)[0]
        assert out[:, :, 33:].isnan().any(-1).all()
        # Not the same bits: with a NaN among the keys a maximum is subtracted.
        torch.testing.assert_close(out[:, :, :33], clean[0][:, :, :33], rtol=1e-5, atol=1e-6)


def test_masked_keys_are_not_read():
    """Whatever a masked key holds changes nothing, and its gradients are 0."""
    v = C.Variant("masked", n=35, padding="both")
    tensors = C.inputs(v, torch.float32)
    expected = K.exact(v, tensors)
    for mask, key, value in zip(C.masks(v), (1, 2), (3, 4), strict=True):
        hidden = ~mask[:, None].expand(-1, v.heads[1], -1)
        tensors[key][hidden] = torch.nan
        tensors[value][hidden] = torch.inf
    found = K.exact(v, tensors)
    for name, f, e in zip(K.NAMES, found, expected, strict=True):
        assert_same_bits(f, e, name)
    for mask, at in zip(C.masks(v) * 2, (3, 4, 5, 6), strict=True):
        hidden = ~mask[:, None].expand(-1, v.heads[1], -1)
        assert (found[at][hidden] == 0).all()


# -------------------------------------------------------------------------------------- polynomial

FULL = (
    (C.Variant("order 3", n=33, dims=(9, 24), heads=(4, 2)), (17, 130), 3),
    (C.Variant("order 3, masked", n=65, dims=(32, 32), padding="both", batch=1), (63, 1), 2),
    (C.Variant("order 4", n=70, dims=(5, 33), batch=1, padding="both"), (7, 30, 20), 4),
    (C.Variant("order 5", n=5, dims=(3, 2), heads=(2, 1)), (3, 4, 5, 6), 2),
    (C.Variant("order 2", n=65, dims=(4, 8), batch=1), (5,), 6),
    (C.Variant("degree 1", n=17, dims=(128, 100), batch=1), (63, 17), 1),
    (C.Variant("degree 0", n=129, dims=(4, 8), batch=1), (17, 2), 0),
    (C.Variant("degree 9", n=3, dims=(2, 2), batch=1), (17, 5), 9),
    (C.Variant("head dim 1", n=40, dims=(1, 1), padding="both"), (300, 5), 5),
)
BOUNDED = (
    (
        C.Variant("causal", n=129, dims=(9, 24), heads=(4, 2), causal=True, batch=1),
        (130, 63),
        3,
        (),
    ),
    (C.Variant("causal, short", n=5, dims=(3, 4), causal=True), (7, 3), 2, ()),
    (C.Variant("windows", n=70, dims=(16, 16), causal=True, batch=1), (70, 70), 2, (9, 33)),
    (C.Variant("window", n=63, dims=(4, 8), padding="both", batch=1), (63, 70), 1, (0, 3)),
    (C.Variant("causal, masked", n=65, dims=(32, 5), causal=True, padding="x"), (65, 65), 2, ()),
    # The rest go by running sums: chosen by cost, or the only way.
    (C.Variant("causal, sums", n=101, dims=(5, 16), heads=(4, 2), causal=True), (101, 63), 2, ()),
    (C.Variant("order 2", n=75, dims=(3, 5), causal=True, heads=(3, 1)), (80,), 3, ()),
    (
        C.Variant("order 4", n=66, dims=(3, 7), causal=True, padding="x", batch=1),
        (9, 70, 66),
        3,
        (0, 9, 1),
    ),
    (C.Variant("order 4, windows", n=75, dims=(2, 5), batch=1), (7, 80, 70), 2, (0, 64, 40)),
    (C.Variant("order 5", n=7, dims=(2, 3), heads=(2, 1)), (3, 9, 5, 7), 1, (0, 2, 0, 5)),
    (C.Variant("wide", n=40, dims=(2, 37), causal=True, batch=1), (40, 40, 2), 0, (33, 0, 0)),
)


@pytest.mark.parametrize(("v", "lengths", "degree"), FULL, ids=C.name_of)
@DTYPES
def test_polynomial(v, lengths, degree, dtype):
    K.Sums(v, lengths, degree, dtype).check()


@pytest.mark.parametrize(("v", "lengths", "degree", "window"), BOUNDED, ids=C.name_of)
@DTYPES
def test_bounded_polynomial(v, lengths, degree, window, dtype):
    K.Sums(v, lengths, degree, dtype, window).check()


def test_masked_keys_are_not_read_by_polynomials():
    for v, lengths, degree, *window in (FULL[1], FULL[2], BOUNDED[4]):
        sums = K.Sums(v, lengths, degree, torch.float32, *window)
        expected = sums.kernel()
        for m, mask in enumerate(sums.masks):
            hidden = ~mask[:, None].expand(-1, v.heads[1], -1)
            sums.keys[m][hidden] = torch.nan
            sums.values[m][hidden] = torch.inf
        for at, (f, e) in enumerate(zip(sums.kernel(), expected, strict=True)):
            assert_same_bits(f, e, f"{v.name}, output {at}")


# --------------------------------------------------------------------------------- threads, layouts


@pytest.mark.parametrize("form", [*N.FORMS, "polynomial", "bounded polynomial"])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)])
def test_threads(form, heads, threads):
    """Any number of threads writes the same bits: sums are shared out by shape alone."""
    v = C.Variant("threads", n=150, heads=heads, dims=(8, 20), batch=1, causal=form != "polynomial")
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        if "polynomial" in form:
            found.append(K.Sums(v, (150, 140), 3, torch.float32).kernel())
        else:
            found.append(K.exact(v, C.inputs(v, torch.float32), form=form))
    for other in found[1:]:
        for at, (f, e) in enumerate(zip(other, found[0], strict=True)):
            assert_same_bits(f, e, f"output {at}")


@FORMS
@DTYPES
def test_strides(dtype, form):
    """Inputs and outputs (batch, length, head, channel) in memory, with gaps."""
    v = C.Variant("strides", n=37, heads=(4, 2), dims=(19, 7), padding="both", causal=True)
    tensors = C.inputs(v, dtype)
    expected = K.exact(v, tensors, form=form)
    found = K.exact(v, [spread(t) for t in tensors], form=form)
    for name, f, e in zip(K.NAMES, found, expected, strict=True):
        assert_same_bits(f, e, name)


def test_results_stay_within_their_rows():
    v = C.Variant("sentinels", n=37, dims=(19, 7), heads=(2, 2), batch=1)
    q, k1, k2, v1, v2, dout = C.inputs(v, torch.float32)
    grads = [spread(torch.zeros_like(t)) for t in (q, k1, k2, v1, v2)]
    out, lse, delta = spread(torch.zeros_like(dout)), *torch.zeros(2, *q.shape[:3])
    N.attention("cpu", q, k1, k2, v1, v2, None, None, out, lse, 0.2, False, [])
    rest = (lse, delta, None, None, *grads, 0.2, False, [])
    N.attention_bwd("cpu", dout, q, k1, k2, v1, v2, *rest)
    for t in (out, *grads):
        whole = t.as_strided((t.untyped_storage().size() // 4,), (1,), 0)
        assert int(whole.isfinite().sum()) == t.numel()


def test_expanded_keys():
    """Strides of zero over batches, heads and lengths."""
    v = C.Variant("expanded", n=20)
    tensors = C.inputs(v, torch.float32)
    for at in (1, 2, 3, 4):
        tensors[at] = tensors[at][:1, :1, :1].expand_as(tensors[at])
    q, *others, dout = tensors
    out, lse = torch.empty_like(dout), torch.empty(q.shape[:3])
    N.attention("cpu", q, *others, None, None, out, lse, 0.25, False, [])
    dense = [t.contiguous() for t in others]
    expected = torch.empty_like(dout)
    N.attention("cpu", q, *dense, None, None, expected, lse, 0.25, False, [])
    assert_same_bits(out, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory without reserving it")
def test_rows_more_than_2_to_31_elements_apart():
    """Only the pages that hold a row exist."""
    v = replace(C.VARIANTS[4], n=4, batch=1, heads=(1, 1), dims=(9, 9))
    tensors = C.inputs(v, torch.float16)
    apart = 2**31 + 64
    no_reserve = 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    wide = []
    for t in tensors:
        room = mmap.mmap(-1, 2 * (apart * 3 + 9), flags=flags)
        whole = torch.frombuffer(room, dtype=torch.float16)
        wide.append(whole.as_strided((1, 1, 4, 9), (0, 0, apart, 1)).copy_(t))
    found, expected = [], []
    for tensors_, to in ((wide, found), (tensors, expected)):
        q, k1, k2, v1, v2, dout = tensors_
        out, lse, delta = torch.empty(1, 1, 4, 9, dtype=torch.float16), *torch.zeros(2, 1, 1, 4)
        N.attention("cpu", q, k1, k2, v1, v2, None, None, out, lse, 0.3, False, [])
        grads = [torch.empty(1, 1, 4, 9, dtype=torch.float16) for _ in range(5)]
        rest = (lse, delta, None, None, *grads, 0.3, False, [])
        N.attention_bwd("cpu", dout, q, k1, k2, v1, v2, *rest)
        to += [out, lse, *grads]
    for name, f, e in zip(K.NAMES, found, expected, strict=True):
        assert_same_bits(f, e, name)


MEMORY = """
import resource, torch
from sublimate._native import kronecker_attention as N
torch.set_num_threads(2)
n = 640
q, k1, k2, v1, v2, dout, out, *grads = (torch.randn(1, 2, n, 16) for _ in range(12))
lse, delta = torch.zeros(2, 1, 2, n)
def run(rows):
    t = [x[:, :, :rows] for x in (q, k1, k2, v1, v2)]
    l, d, g = lse[..., :rows].clone(), delta[..., :rows].clone(), [x[:, :, :rows] for x in grads]
    N.attention("cpu", *t, None, None, out[:, :, :rows], l, 0.25, False, [])
    N.attention_bwd("cpu", dout[:, :, :rows], *t, l, d, None, None, *g, 0.25, False, [])
    c = torch.ones(1, 2, 4)
    num, den = torch.empty(1, 2, rows, 16), torch.empty(1, 2, rows)
    N.polynomial("cpu", t[0], t[1:3], t[3:], [], c, num, den, 0.25, False, [])
run(32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(n)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident memory as Linux does")
def test_memory():
    """Nothing of size n^2: the pairs' keys alone would take 52 MB here, logits 2 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12e6


# ------------------------------------------------------------------------------------------ guards


def attention_arguments():
    t = {name: torch.randn(2, 2, 5, 6) for name in ("q", "k1", "k2", "v1", "v2")}
    mask = torch.ones(2, 5, dtype=torch.bool)
    t.update(mask1=mask, mask2=mask.clone(), out=torch.empty(2, 2, 5, 6), lse=torch.empty(2, 2, 5))
    return {**t, "scale": 0.4, "causal": False, "window": []}


def backward_arguments():
    inputs = {name: torch.randn(2, 2, 5, 6) for name in ("dout", "q", "k1", "k2", "v1", "v2")}
    rows = {name: torch.zeros(2, 2, 5) for name in ("lse", "delta")}
    mask = torch.ones(2, 5, dtype=torch.bool)
    grads = {name: torch.empty(2, 2, 5, 6) for name in ("dq", "dk1", "dk2", "dv1", "dv2")}
    rest = {"scale": 0.4, "causal": False, "window": []}
    return {**inputs, **rows, "mask1": mask, "mask2": mask.clone(), **grads, **rest}


OPS = {
    "kronecker_attention": (N.attention, attention_arguments),
    "kronecker_attention_backward": (N.attention_bwd, backward_arguments),
}
TENSORS = [
    (op, name)
    for op, (_, make) in OPS.items()
    for name, value in make().items()
    if isinstance(value, Tensor)
]


def run(op, **changes):
    function, make = OPS[op]
    function("cpu", *{**make(), **changes}.values())


@pytest.mark.parametrize("op", OPS)
def test_the_unchanged_arguments_are_good(op):
    run(op)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_tensors(op, name):
    value = OPS[op][1]()[name]
    with pytest.raises(NativeError, match=f"^{op}: {name} is on meta, the kernel needs cpu"):
        run(op, **{name: value.to("meta")})
    with pytest.raises(NativeError, match=f"^{op}: {name} has torch.int16, the kernel needs"):
        run(op, **{name: value.to(torch.int16)})
    if name not in ("q", "k1"):  # whose shapes the others are held to
        with pytest.raises(NativeError, match=f"^{op}: {name} has shape"):
            run(op, **{name: value[:, :1]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.randn(2, 5, 6)}, "q has 3 dimensions, the kernel needs 4"),
        ({"k2": torch.randn(2, 2, 6, 5).transpose(2, 3)}, "k2 has strides .* consecutive channels"),
        ({"lse": torch.empty(2, 5, 2).transpose(1, 2)}, "lse has shape .* contiguous"),
        ({"window": [3]}, "1 windows for 2 key sets"),
        ({"window": [3, -1]}, "argument out of range"),
        ({"q": torch._neg_view(torch.randn(2, 2, 5, 6))}, "q is a lazy conjugate or negative view"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(NativeError, match=rf"kronecker_attention\b.*{message}"):
        run("kronecker_attention", **changes)


def test_limits():
    wide = {name: torch.randn(1, 1, 3, 129) for name in ("q", "k1", "k2", "v1", "v2", "out")}
    none = {"mask1": None, "mask2": None, "lse": torch.empty(1, 1, 3)}
    with pytest.raises(NativeError, match=r"head dimensions \(129, 129\), the kernel has 1 to 128"):
        run("kronecker_attention", **wide, **none)
    heads = {name: torch.randn(2, 3, 5, 6) for name in ("q", "out")}
    with pytest.raises(NativeError, match="argument out of range"):
        run("kronecker_attention", **heads, lse=torch.empty(2, 3, 5))
    sums = K.Sums(C.Variant("limits", n=3, dims=(2, 2)), (3, 3), 13, torch.float32)
    with pytest.raises(NativeError, match="degree 13, the kernel has 0 to 12"):
        sums.kernel()
    sums = K.Sums(C.Variant("limits", n=3, dims=(2, 2)), (3,) * 8, 1, torch.float32)
    with pytest.raises(NativeError, match="8 key sets, 8 value sets and 0 masks"):
        sums.kernel()
