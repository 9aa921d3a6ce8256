"""The binding: guards before every address, errors that name op and argument, threads and forks."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch
from helpers.parity import assert_same_bits
from sublimate import NativeError, _native, fewbit
from sublimate.fewbit import reference as R

N, BITS = 100, 2
GELU = list(R.FUNCTIONS).index("gelu")


def forward_arguments():
    return {
        "backend": "cpu",
        "x": torch.randn(N),
        "y": torch.empty(N),
        "packed": torch.empty(R.words(N, BITS), dtype=torch.int32),
        "borders": torch.tensor([-1.0, 0.0, 1.0]),
        "codes": torch.arange(4, dtype=torch.uint8),
        "levels": torch.linspace(0, 1, 4),
        "fn": GELU,
        "a": 0.0,
        "b": 0.0,
        "bits": BITS,
        "seed": None,
    }


def backward_arguments():
    return {
        "backend": "cpu",
        "grad": torch.randn(N),
        "packed": torch.zeros(R.words(N, BITS), dtype=torch.int32),
        "levels": torch.linspace(0, 1, 4),
        "dx": torch.empty(N),
        "bits": BITS,
    }


def gated_arguments():
    return {
        "backend": "cpu",
        "gate": torch.randn(4, 25),
        "up": torch.randn(4, 25),
        "y": torch.empty(4, 25),
        "packed": torch.empty(R.words(N, BITS), dtype=torch.int32),
        "borders": torch.tensor([-1.0, 0.0, 1.0]),
        "codes": torch.arange(4, dtype=torch.uint8),
        "fn": GELU,
        "bits": BITS,
        "scale": torch.ones(4),
        "inner": 25,
    }


def gated_backward_arguments():
    return {
        "backend": "cpu",
        "dy": torch.randn(4, 25),
        "kept": torch.randn(4, 25),
        "packed": torch.zeros(R.words(N, BITS), dtype=torch.int32),
        "levels": torch.linspace(0, 1, 4),
        "values": torch.linspace(0, 1, 4),
        "scale": torch.ones(4),
        "inner": 25,
        "fn": GELU,
        "dgate": torch.empty(4, 25),
        "dup": torch.empty(4, 25),
        "bits": BITS,
    }


OPS = {
    "fewbit_fwd": (_native.fewbit.fwd, forward_arguments),
    "fewbit_bwd": (_native.fewbit.bwd, backward_arguments),
    "fewbit_gated_fwd": (_native.fewbit.gated_fwd, gated_arguments),
    "fewbit_gated_bwd": (_native.fewbit.gated_bwd, gated_backward_arguments),
}
TENSORS = [
    (op, name)
    for op, (_, make) in OPS.items()
    for name, value in make().items()
    if isinstance(value, torch.Tensor)
]


#: Tensors of one element per element of the input.
ELEMENTS = ("x", "y", "grad", "dx", "gate", "up", "dy", "kept", "dgate", "dup")


def run(op, **changes):
    function, make = OPS[op]
    function(*{**make(), **changes}.values())


@pytest.mark.parametrize("op", OPS)
def test_the_unchanged_arguments_are_good(op):
    run(op)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_device(op, name):
    value = OPS[op][1]()[name]
    with pytest.raises(
        NativeError, match=f"^{op}: {name} (is on meta, the kernel needs cpu|has strides)"
    ):
        run(op, **{name: value.to("meta")})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_wrong_dtype(op, name):
    value = OPS[op][1]()[name]
    # x and its like set the dtype of the rest: for them a dtype no kernel has.
    leading = name in ("x", "grad", "gate", "dy")
    wrong = torch.int16 if leading or value.dtype != torch.float32 else torch.float64
    with pytest.raises(
        NativeError, match=f"^{op}: {name} has torch.{str(wrong)[6:]}, the kernel needs"
    ):
        run(op, **{name: value.to(wrong)})


@pytest.mark.parametrize(("op", "name"), [t for t in TENSORS if t[1] != "borders"])
def test_wrong_size(op, name):
    value = OPS[op][1]()[name]
    if name in ("x", "grad", "gate", "dy"):
        longer = torch.randn(5, 25) if value.dim() == 2 else torch.randn(N + 1)
        name_in_message = "[a-z]+"  # some other tensor is now too short
    else:
        longer = torch.cat([value, value[:1]])
        name_in_message = name
    with pytest.raises(
        NativeError, match=f"^{op}: {name_in_message} has (shape|{len(longer)} elements)"
    ):
        run(op, **{name: longer})
    if name not in ("x", "grad", "gate", "dy"):
        with pytest.raises(NativeError, match=f"^{op}: {name} has"):
            run(op, **{name: value[:-1]})


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in TENSORS if name in ELEMENTS])
def test_wrong_layout(op, name):
    """Holes and other strides: the kernel walks memory, so all must share one dense layout."""
    value = OPS[op][1]()[name]
    spread = torch.empty(*value.shape[:-1], 2 * value.shape[-1])[..., ::2]
    leading = name in ("x", "grad", "gate", "dy")
    expected = "expected a dense tensor, got strides" if leading else f"{name} has strides"
    with pytest.raises(NativeError, match=f"^{op}: {expected}"):
        run(op, **{name: spread})
    if value.dim() == 2 and not leading:
        with pytest.raises(NativeError, match=f"^{op}: {name} has strides"):
            run(op, **{name: torch.empty(value.shape[::-1]).t()})


def test_lazy_negative():
    with pytest.raises(NativeError, match="fewbit_fwd: x is a lazy conjugate or negative view"):
        run("fewbit_fwd", x=torch._neg_view(torch.randn(N)))


def test_table_guards():
    with pytest.raises(
        NativeError, match="fewbit_fwd: expected at most 255 contiguous borders, got 256"
    ):
        run("fewbit_fwd", borders=torch.arange(256.0), codes=torch.zeros(257, dtype=torch.uint8))
    with pytest.raises(NativeError, match="contiguous borders"):
        run("fewbit_fwd", borders=torch.arange(6.0)[::2])
    with pytest.raises(NativeError, match=f"fewbit_fwd: bits={BITS} but no packed tensor"):
        run("fewbit_fwd", packed=None)
    with pytest.raises(NativeError, match="fewbit_fwd: codes has 3 elements, the kernel needs 4"):
        run("fewbit_fwd", codes=torch.zeros(3, dtype=torch.uint8))


def test_status_names_op_and_shape():
    """What only the kernel can refuse comes back as a status, with op, shape and dtype."""
    message = r"sublimate\._C\.fewbit_fwd failed on shape \(100,\), torch\.float32: argument out of"
    with pytest.raises(NativeError, match=message):
        run("fewbit_fwd", fn=999)
    with pytest.raises(NativeError, match=r"_C\.fewbit_bwd failed on shape \(100,\).*status -2"):
        packed, levels = torch.zeros(R.words(N, 5), dtype=torch.int32), torch.zeros(32)
        run("fewbit_bwd", packed=packed, levels=levels, bits=5)
    with pytest.raises(NativeError, match=r"_C\.fewbit_gated_fwd failed on shape \(4, 25\)"):
        run("fewbit_gated_fwd", fn=list(R.FUNCTIONS).index("mish"))
    assert issubclass(NativeError, RuntimeError)


def test_error_texts():
    module = _native.CPU.load()
    assert module.error_text(0) == "success"
    assert module.isa in ("base", "v3", "v4")
    assert len({module.error_text(s) for s in (0, -1, -2, -3, -99)}) == 5


@pytest.mark.parametrize(
    ("shape", "stride", "expected"),
    [
        ((), (), True), ((5,), (1,), True), ((5,), (2,), False), ((1,), (7,), True),
        ((2, 3), (3, 1), True), ((2, 3), (1, 2), True), ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False), ((2, 1, 3), (3, 99, 1), True), ((0, 3), (7, 2), True),
        ((3, 0), (5, 5), True), ((2, 2), (1, 1), False), ((2, 3, 4), (1, 8, 2), True),
    ],
)  # fmt: skip
def test_dense(shape, stride, expected):
    assert _native.dense(torch.empty_strided(shape, stride)) is expected


# ---------------------------------------------------------------------------------- loading


def test_missing_and_broken_modules(tmp_path):
    absent = _native.Library("sublimate._C_absent", "cpu")
    with pytest.raises(
        NativeError, match=r"sublimate._C_absent was not built .*SUBLIMATE_SKIP_NATIVE"
    ):
        absent.load()
    assert absent.reason() == absent.reason() != ""
    cuda = _native.Library("sublimate.absent._C_cuda", "cuda")
    assert "failed to import" in cuda.reason() or "was not built" in cuda.reason()
    broken = tmp_path / "_C_broken.so"
    broken.write_bytes(b"no module")
    library = _native.Library("sublimate._C_broken", "cpu", file=broken)
    with pytest.raises(NativeError, match=r"_C_broken is installed but does not load: .*torch"):
        library.load()


# ------------------------------------------------------------------------------ threads and forks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", [16384 * 2 - 1, 16384 * 2, 100_003])
def test_number_of_threads_changes_nothing(n, dtype):
    """Codes, values, gradients and random codes are the same bits for 1, 2 and 3 threads."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)

    def everything():
        out = []
        for call in ({}, {"stochastic": True, "seed": 5}):
            leaf = x.clone().requires_grad_()
            y = fewbit.gelu(leaf, backend="cpu", **call)
            out += [y.detach(), y.grad_fn.saved_tensors[0], torch.autograd.grad(y, leaf, x)[0]]
        gate = x.clone().requires_grad_()
        y = (
            fewbit.swiglu(
                gate[: n - 1].view(-1, 2), gate[1:].view(-1, 2), keep="gate", backend="cpu"
            )
            if n % 2
            else y
        )
        return [*out, y.detach()]

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_same_bits(a, b)


def test_called_from_many_threads():
    """Kernels release the interpreter lock: calls run beside each other and do not mix."""
    inputs = [torch.randn(50_000, generator=torch.Generator().manual_seed(s)) for s in range(6)]
    due = [gradient(x) for x in inputs]
    found = [[] for _ in inputs]

    def work(k):
        for _ in range(5):
            found[k].append(gradient(inputs[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, expected in zip(found, due, strict=True):
        assert len(results) == 5
        for result in results:
            assert_same_bits(result, expected)


def gradient(x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(fewbit.gelu(leaf, backend="cpu"), leaf, x)[0]


def _child(connection, x, due):
    torch.set_num_threads(1)  # as DataLoader workers do
    connection.send(bool(torch.equal(fewbit.gelu(x, backend="cpu"), due)))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork (Linux, macOS)")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    """A forked worker runs the kernels, as torch's DataLoader workers would."""
    x = torch.randn(100_000)
    due = fewbit.gelu(x, backend="cpu")  # OpenMP has its threads now
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, x, due))
    process.start()
    try:
        assert here.poll(60), "the forked process hangs"
        assert here.recv() is True
    finally:
        process.kill()
        process.join()


def test_thread_count_is_torchs(monkeypatch):
    """The last argument of every kernel is torch's own setting at the time of the call."""
    seen = []
    module = _native.CPU.load()

    class Recorder:
        isa, error_text = module.isa, staticmethod(module.error_text)

        def __getattr__(self, op):
            def call(*arguments):
                seen.append((op, arguments[-1]))
                return getattr(module, op)(*arguments)

            return call

    monkeypatch.setattr(_native.CPU, "_loaded", Recorder())
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            gradient(torch.randn(10))
    finally:
        torch.set_num_threads(before)
    assert seen == [("fewbit_fwd", 1), ("fewbit_bwd", 1), ("fewbit_fwd", 2), ("fewbit_bwd", 2)]
