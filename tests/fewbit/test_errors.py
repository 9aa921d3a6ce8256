"""Bad input: the exact exception, naming argument, expected and got, before anything runs."""

from __future__ import annotations

import pytest
import sublimate
import torch
from helpers.fewbit_cases import EAGER, EXACT, SMOOTH, public, samples
from sublimate import fewbit

X = samples((4, 8), torch.float32, odd=False)
BOOK = fewbit.fit_codebook("gelu", 3)
GATED = fewbit.fit_gated_codebook("silu", 3)
#: Every public function of one tensor, called with its other arguments in place.
FUNCTIONS = {name: public(name) for name in EAGER}
FUNCTIONS["threshold"] = lambda x, **o: fewbit.threshold(x, 0.1, 0.2, **o)
FUNCTIONS["activation"] = lambda x, **o: fewbit.activation(x, BOOK, **o)
FUNCTIONS["swiglu-gate"] = lambda x, **o: fewbit.swiglu(x, x, **o)
FUNCTIONS["geglu-gate"] = lambda x, **o: fewbit.geglu(x, x, **o)
WITH_BITS = [n for n in FUNCTIONS if n != "activation"]


@pytest.fixture(autouse=True)
def _nothing_runs(calls):
    """No test of this file reaches a kernel."""
    yield
    assert not calls, f"ran {dict(calls)}"


def raises(error, *parts):
    """The exact type, and a message with all parts in order."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(error)
            self.info = self.context.__enter__()
            return self.info

        def __exit__(self, *exception):
            result = self.context.__exit__(*exception)
            assert self.info.type is error, f"{self.info.type.__name__}: {self.info.value}"
            rest = str(self.info.value)
            for part in parts:
                assert part in rest, f"{part!r} not in {self.info.value!s}"
                rest = rest[rest.index(part) :]
            return result

    return Check()


DTYPE = "expected a tensor of float32, float16, bfloat16 or float64"


@pytest.mark.parametrize(
    ("x", "error", "parts"),
    [
        (3.0, TypeError, ("expected a torch.Tensor", "got float")),
        (None, TypeError, ("expected a torch.Tensor", "got NoneType")),
        ([1.0], TypeError, ("expected a torch.Tensor", "got list")),
        (torch.arange(4), TypeError, (DTYPE, "got torch.int64")),
        (torch.zeros(4, dtype=torch.bool), TypeError, (DTYPE, "got torch.bool")),
        (torch.zeros(4, dtype=torch.complex64), TypeError, (DTYPE, "got torch.complex64")),
        (torch.zeros(4, dtype=torch.float8_e5m2), TypeError, (DTYPE, "got torch.float8_e5m2")),
        (torch.zeros(4, 4).to_sparse(), TypeError, ("dense (strided)", "torch.sparse_coo")),
    ],
    ids=["float", "None", "list", "int64", "bool", "complex", "float8", "sparse"],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_input(name, x, error, parts):
    argument = "gate: " if name.endswith("gate") else "x: "
    with raises(error, argument, *parts):
        FUNCTIONS[name](x)


@pytest.mark.parametrize(
    ("bits", "error", "got"),
    [
        (0, ValueError, "got 0"), (5, ValueError, "got 5"), (-1, ValueError, "got -1"),
        (True, TypeError, "got bool"), ("3", TypeError, "got str '"), (2.0, TypeError, "got float"),
        (None, TypeError, "got NoneType"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", WITH_BITS)
def test_bits(name, bits, error, got):
    most = 1 if name in EXACT else 4
    with raises(error, f"bits: expected an int from 1 to {most}", got):
        FUNCTIONS[name](X, bits=bits)


@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_take_one_bit(name):
    with raises(ValueError, "bits: expected an int from 1 to 1", "got 2"):
        FUNCTIONS[name](X, bits=2)


@pytest.mark.parametrize("name", SMOOTH)
def test_codebook(name):
    f = FUNCTIONS[name]
    with raises(ValueError, "codebook: expected a codebook of bits=2", "got 3"):
        f(X, bits=2, codebook=BOOK)
    with raises(ValueError, "codebook: expected a codebook of bits=3", "got 4"):
        f(
            X,
            codebook=fewbit.Codebook.from_dict({**BOOK.to_dict(), "bits": 4, "levels": [0.0] * 16}),
        )
    for wrong, got in (
        (GATED, "GatedCodebook"),
        ({}, "dict"),
        ("gelu", "str"),
        (torch.ones(8), "Tensor"),
    ):
        with raises(
            TypeError, "codebook: expected a sublimate.fewbit.Codebook or None", f"got {got}"
        ):
            f(X, codebook=wrong)


def test_codebook_whose_levels_do_not_match_its_bits():
    with raises(ValueError, "levels must have 2**bits = 4 entries for bits=2", "got 8"):
        fewbit.Codebook(torch.tensor([0.0]), torch.tensor([0, 1]), torch.zeros(8), 2)
    with raises(ValueError, "codes must have len(borders) + 1 = 2 entries", "got 3"):
        fewbit.Codebook(torch.tensor([0.0]), torch.tensor([0, 1, 2]), torch.zeros(4), 2)
    with raises(ValueError, "codes of 1 bits must be in [0, 2)", "got [0, 2]"):
        fewbit.Codebook(torch.tensor([0.0]), torch.tensor([0, 2]), torch.zeros(2), 1)
    with raises(ValueError, "bits must be 1 to 8", "got 9"):
        fewbit.Codebook(torch.tensor([0.0]), torch.tensor([0, 1]), torch.zeros(2), 9)


@pytest.mark.parametrize("name", [*SMOOTH, "activation"])
def test_stochastic_and_seed(name):
    f = FUNCTIONS[name]
    for wrong, got in ((1, "int"), (None, "NoneType"), ("yes", "str")):
        with raises(TypeError, "stochastic: expected a bool", f"got {got}"):
            f(X, stochastic=wrong)
    with raises(ValueError, "seed: expected None unless stochastic=True", "got 3"):
        f(X, seed=3)
    if name == "activation":
        return
    for seed, error, parts in SEEDS:
        with raises(error, "seed: expected", *parts):
            f(X, stochastic=True, seed=seed)


SEEDS = [
    (-1, ValueError, ("an int in [0, 2**63)", "got -1")),
    (2**63, ValueError, ("an int in [0, 2**63)", f"got {2**63}")),
    (1.0, TypeError, ("an int or a 0-dim int64 tensor", "got float")),
    (True, TypeError, ("an int or a 0-dim int64 tensor", "got bool")),
    ("1", TypeError, ("an int or a 0-dim int64 tensor", "got str '")),
    (torch.tensor([1]), TypeError, ("0-dim int64 tensor", "got a 1-dim tensor of torch.int64")),
    (torch.tensor(1.0), TypeError, ("0-dim int64 tensor", "got a 0-dim tensor of torch.float32")),
    (torch.tensor(1, dtype=torch.int32), TypeError, ("0-dim int64", "torch.int32")),
    (
        torch.empty((), dtype=torch.int64, device="meta"),
        ValueError,
        ("a tensor on cpu", "got meta"),
    ),
]


# ------------------------------------------------------------------------------------- parameters

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (
            lambda: fewbit.gelu(X, approximate="erf"),
            ValueError,
            ("approximate: expected one of 'none', 'tanh'", "got 'erf'"),
        ),
        (
            lambda: fewbit.gelu(X, approximate=None),
            TypeError,
            ("approximate: expected", "got NoneType"),
        ),
        (
            lambda: fewbit.geglu(X, X, approximate="x"),
            ValueError,
            ("approximate: expected", "got 'x'"),
        ),
        (lambda: fewbit.elu(X, NAN), ValueError, ("alpha: expected a number", "got nan")),
        (lambda: fewbit.elu(X, "1"), TypeError, ("alpha: expected a number", "got str '")),
        (
            lambda: fewbit.elu(X, torch.tensor(1.0)),
            TypeError,
            ("alpha: expected a number", "got Tensor"),
        ),
        (lambda: fewbit.celu(X, 0), ValueError, ("alpha: expected a number other than 0", "got 0")),
        (lambda: fewbit.celu(X, 0.0), ValueError, ("alpha: expected a number other than 0",)),
        (lambda: fewbit.celu(X, NAN), ValueError, ("alpha: expected a number", "got nan")),
        (
            lambda: fewbit.softplus(X, 0),
            ValueError,
            ("beta: expected a number other than 0", "got 0"),
        ),
        (lambda: fewbit.softplus(X, NAN), ValueError, ("beta: expected a number", "got nan")),
        (
            lambda: fewbit.softplus(X, 1.0, NAN),
            ValueError,
            ("threshold: expected a number", "got nan"),
        ),
        (lambda: fewbit.softplus(X, True), TypeError, ("beta: expected a number", "got bool")),
        (
            lambda: fewbit.leaky_relu(X, NAN),
            ValueError,
            ("negative_slope: expected a number", "got nan"),
        ),
        (
            lambda: fewbit.leaky_relu(X, None),
            TypeError,
            ("negative_slope: expected a number", "got NoneType"),
        ),
        (
            lambda: fewbit.threshold(X, NAN, 0.0),
            ValueError,
            ("threshold: expected a number", "got nan"),
        ),
        (
            lambda: fewbit.threshold(X, 0.0, "0"),
            TypeError,
            ("value: expected a number", "got str '"),
        ),
        (
            lambda: fewbit.hardtanh(X, 2.0, 1.0),
            ValueError,
            ("min_val: expected at most max_val, 1.0", "got 2.0"),
        ),
        (
            lambda: fewbit.hardtanh(X, NAN, 1.0),
            ValueError,
            ("min_val: expected a number", "got nan"),
        ),
        (
            lambda: fewbit.hardtanh(X, 0.0, "1"),
            TypeError,
            ("max_val: expected a number", "got str '"),
        ),
        (
            lambda: fewbit.hardshrink(X, -0.1),
            ValueError,
            ("lambd: expected a number of at least 0", "got -0.1"),
        ),
        (
            lambda: fewbit.softshrink(X, -1),
            ValueError,
            ("lambd: expected a number of at least 0", "got -1"),
        ),
        (lambda: fewbit.softshrink(X, NAN), ValueError, ("lambd: expected a number", "got nan")),
        (lambda: fewbit.hardshrink(X, "a"), TypeError, ("lambd: expected a number", "got str '")),
    ],
)
def test_parameters(call, error, parts):
    with raises(error, *parts):
        call()


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: fewbit.CELU(0.0), ValueError, ("alpha: expected a number other than 0",)),
        (lambda: fewbit.ELU(NAN), ValueError, ("alpha: expected a number", "got nan")),
        (lambda: fewbit.Softplus(0), ValueError, ("beta: expected a number other than 0",)),
        (
            lambda: fewbit.Softplus(1, "20"),
            TypeError,
            ("threshold: expected a number", "got str '"),
        ),
        (lambda: fewbit.GELU("erf"), ValueError, ("approximate: expected", "got 'erf'")),
        (lambda: fewbit.GEGLU("erf"), ValueError, ("approximate: expected", "got 'erf'")),
        (lambda: fewbit.Hardtanh(1.0, -1.0), ValueError, ("min_val: expected at most max_val",)),
        (lambda: fewbit.Hardshrink(-1.0), ValueError, ("lambd: expected a number of at least 0",)),
        (
            lambda: fewbit.LeakyReLU(NAN),
            ValueError,
            ("negative_slope: expected a number", "got nan"),
        ),
        (
            lambda: fewbit.Threshold("a", 0.0),
            TypeError,
            ("threshold: expected a number", "got str '"),
        ),
        (lambda: fewbit.ReLU(bits=2), ValueError, ("bits: expected an int from 1 to 1", "got 2")),
        (lambda: fewbit.GELU(bits=5), ValueError, ("bits: expected an int from 1 to 4", "got 5")),
        (lambda: fewbit.GELU(bits="3"), TypeError, ("bits: expected an int", "got str '")),
        (lambda: fewbit.GELU(bits=2, codebook=BOOK), ValueError, ("codebook: expected", "got 3")),
        (lambda: fewbit.GELU(codebook=GATED), TypeError, ("codebook: expected", "GatedCodebook")),
        (lambda: fewbit.GELU(stochastic=1), TypeError, ("stochastic: expected a bool", "got int")),
        (lambda: fewbit.GELU(backend="gpu"), ValueError, ("backend: expected one of", "got 'gpu'")),
        (lambda: fewbit.SwiGLU(bits=0), ValueError, ("bits: expected an int from 1 to 4", "got 0")),
        (
            lambda: fewbit.SwiGLU(keep="both"),
            ValueError,
            ("keep: expected one of 'up', 'gate'", "got 'both'"),
        ),
        (
            lambda: fewbit.SwiGLU(codebook=BOOK),
            TypeError,
            ("codebook: expected a sublimate.fewbit.GatedCodebook",),
        ),
        (
            lambda: fewbit.GEGLU(codebook=GATED),
            ValueError,
            ("codebook: expected a codebook of gelu with bits=3", "got silu"),
        ),
        (
            lambda: fewbit.GELU()(torch.arange(3)),
            TypeError,
            ("x: expected a tensor of float32", "got torch.int64"),
        ),
        (
            lambda: fewbit.ReLU()(torch.arange(3)),
            TypeError,
            ("x: expected a tensor of float32", "got torch.int64"),
        ),
        (lambda: fewbit.GELU()(3.0), TypeError, ("x: expected a torch.Tensor", "got float")),
        (
            lambda: fewbit.SwiGLU()(X, X[:2]),
            ValueError,
            ("up: expected the shape of gate, (4, 8)", "got (2, 8)"),
        ),
    ],
)
def test_modules(call, error, parts):
    with raises(error, *parts):
        call()


# ------------------------------------------------------------------------ gated and activation


@pytest.mark.parametrize("unit", [fewbit.swiglu, fewbit.geglu])
def test_gated(unit):
    with raises(ValueError, "up: expected the shape of gate, (4, 8)", "got (8, 4)"):
        unit(X, X.t())
    with raises(ValueError, "up: expected the shape of gate", "got (1, 8)"):
        unit(X, X[:1])  # no broadcasting
    with raises(TypeError, "up: expected the dtype of gate, torch.float32", "got torch.float16"):
        unit(X, X.half())
    with raises(ValueError, "up: expected the device of gate, cpu", "got meta"):
        unit(X, X.to("meta"))
    with raises(TypeError, "up: expected a tensor of float32", "got torch.int64"):
        unit(X, X.long())
    with raises(TypeError, "up: expected a torch.Tensor", "got NoneType"):
        unit(X, None)
    with raises(ValueError, "keep: expected one of 'up', 'gate'", "got 'down'"):
        unit(X, X, keep="down")
    with raises(TypeError, "keep: expected one of 'up', 'gate'", "got int"):
        unit(X, X, keep=1)
    with raises(TypeError, "codebook: expected a sublimate.fewbit.GatedCodebook", "got Codebook"):
        unit(X, X, codebook=BOOK)
    with raises(ValueError, 'codebook: expected None with keep="gate"', "got a GatedCodebook"):
        unit(X, X, keep="gate", codebook=GATED)
    with raises(ValueError, "codebook: expected a codebook of", "with bits=2", "3 bits"):
        unit(X, X, bits=2, codebook=GATED)
    with raises(ValueError, 'gate: expected at least one dimension with keep="gate"', "got 0"):
        unit(X[0, 0], X[0, 0], keep="gate")


def test_gated_codebook_of_another_function():
    with raises(
        ValueError, "codebook: expected a codebook of gelu with bits=3", "got silu, 3 bits"
    ):
        fewbit.geglu(X, X, codebook=GATED)
    with raises(ValueError, "codebook: expected a codebook of gelu_tanh", "got silu"):
        fewbit.geglu(X, X, approximate="tanh", codebook=GATED)


def test_activation():
    with raises(TypeError, "codebook: expected a sublimate.fewbit.Codebook", "got NoneType"):
        fewbit.activation(X, None)
    with raises(TypeError, "codebook: expected a sublimate.fewbit.Codebook", "got GatedCodebook"):
        fewbit.activation(X, GATED)
    eight = fewbit.fit_codebook(torch.sigmoid, 8, mode="interval")
    with raises(ValueError, "bits: expected an int from 1 to 4", "got 8"):
        fewbit.activation(X, eight)
    book = fewbit.fit_codebook(lambda t: t.sin(), 2)
    with raises(TypeError, "fn: expected a callable", "got str"):
        fewbit.activation(X, book, fn="sin")
    lost = fewbit.Codebook.from_dict(book.to_dict())
    with raises(ValueError, "fn: expected a callable", "got None"):
        fewbit.activation(X, lost)
    with raises(TypeError, "stochastic: expected a bool", "got int"):
        fewbit.activation(X, book, stochastic=1)


def test_activation_of_something_not_elementwise():
    book = fewbit.fit_codebook(lambda t: t.sin(), 2)
    leaf = X.clone().requires_grad_()
    with raises(
        ValueError, "fn: expected an elementwise function keeping shape (4, 8)", "got (4,)"
    ):
        fewbit.activation(leaf, book, fn=lambda t: t.sum(1), backend="cpu")
    with raises(ValueError, "fn: expected an elementwise function", "got (4, 8) and torch.float64"):
        fewbit.activation(leaf, book, fn=lambda t: t.double().sin(), backend="cpu")


# ----------------------------------------------------------------------------------- backend


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_backend(name):
    names = "('auto', 'reference', 'cpu', 'triton', 'cuda')"
    with raises(ValueError, f"backend: expected one of {names}", "got 'gpu'"):
        FUNCTIONS[name](X, backend="gpu")
    with raises(TypeError, "backend: expected a backend name", "got int"):
        FUNCTIONS[name](X, backend=1)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_backend_that_cannot_run(name, backend):
    """CPU tensors on a GPU backend: every reason, and what would work."""
    with raises(
        sublimate.BackendUnavailable,
        f"backend '{backend}' of sublimate.fewbit cannot run this call (torch.float32 on cpu)",
        "needs tensors on cuda, got cpu",
        "Would work: reference, cpu",
        "python -m sublimate info",
    ):
        FUNCTIONS[name](X, backend=backend)


def test_unavailable_is_a_runtime_error_with_every_reason():
    with raises(sublimate.BackendUnavailable, "needs tensors on cuda, got cpu") as info:
        fewbit.gelu(X, backend="cuda")
    assert isinstance(info.value, RuntimeError)
    reason = sublimate.backends()["fewbit"]["cuda"]
    assert reason is None or reason in str(info.value)


def test_cpu_backend_refuses_tensors_elsewhere():
    with raises(
        sublimate.BackendUnavailable, "needs tensors on cpu, got meta", "Would work: reference"
    ):
        fewbit.gelu(torch.empty(3, device="meta"), backend="cpu")


def test_setting_that_cannot_run():
    """A backend named by a setting is as binding as one named by argument: no silent fall back."""
    with sublimate.use_backend("cuda"), raises(sublimate.BackendUnavailable, "backend 'cuda'"):
        fewbit.gelu(X)
    with sublimate.use_backend("triton"), raises(sublimate.BackendUnavailable, "backend 'triton'"):
        fewbit.GELU()(X)
