"""Modules: torch.nn's signatures, state_dict, moves and casts, copies, printing."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers.fewbit_cases import samples, upstream
from helpers.parity import assert_same_bits
from sublimate import fewbit
from sublimate.fewbit import functional
from torch import nn

#: (name, positional arguments, functional call with them).
SMOOTH = [
    ("GELU", (), lambda x, **o: fewbit.gelu(x, **o)),
    ("GELU", ("tanh",), lambda x, **o: fewbit.gelu(x, approximate="tanh", **o)),
    ("SiLU", (), fewbit.silu),
    ("Sigmoid", (), fewbit.sigmoid),
    ("Tanh", (), fewbit.tanh),
    ("ELU", (0.7,), lambda x, **o: fewbit.elu(x, 0.7, **o)),
    ("CELU", (1.3,), lambda x, **o: fewbit.celu(x, 1.3, **o)),
    ("SELU", (), fewbit.selu),
    ("Softplus", (2.0, 5.0), lambda x, **o: fewbit.softplus(x, 2.0, 5.0, **o)),
    ("Mish", (), fewbit.mish),
    ("Hardswish", (), fewbit.hardswish),
    ("LogSigmoid", (), fewbit.logsigmoid),
    ("Softsign", (), fewbit.softsign),
    ("Tanhshrink", (), fewbit.tanhshrink),
]
EXACT = [
    ("ReLU", (), fewbit.relu),
    ("ReLU6", (), fewbit.relu6),
    ("LeakyReLU", (0.2,), lambda x, **o: fewbit.leaky_relu(x, 0.2, **o)),
    ("Threshold", (0.1, -3.0), lambda x, **o: fewbit.threshold(x, 0.1, -3.0, **o)),
    ("Hardtanh", (-0.5, 2.0), lambda x, **o: fewbit.hardtanh(x, -0.5, 2.0, **o)),
    ("Hardsigmoid", (), fewbit.hardsigmoid),
    ("Hardshrink", (0.3,), lambda x, **o: fewbit.hardshrink(x, 0.3, **o)),
    ("Softshrink", (0.3,), lambda x, **o: fewbit.softshrink(x, 0.3, **o)),
]
ALL = SMOOTH + EXACT
TABLES = ("borders", "codes", "levels")


def ids(case):
    return case[0] + "".join(f"-{a}" for a in case[1])


def both(f, x):
    leaf = x.detach().clone().requires_grad_()
    y = f(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, upstream(y.shape, y.dtype))[0]


def assert_equal(found, due):
    for a, b in zip(found, due, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids)
def test_is_its_function(case, dtype, calls):
    """Same value and gradient as the function, and the value of torch.nn's module."""
    name, arguments, f = case
    x = samples(300, dtype, odd=False)
    module = getattr(fewbit, name)(*arguments, backend="cpu")
    found = both(module, x)
    assert calls["cpu"] == 2
    assert_equal(found, both(lambda t: f(t, backend="cpu"), x))
    plain = getattr(nn, name)(*arguments)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found[0], plain(x), rtol=tolerance, atol=tolerance)
    assert list(module.parameters()) == []


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("case", SMOOTH, ids=ids)
def test_bits(case, bits):
    name, arguments, f = case
    module = getattr(fewbit, name)(*arguments, bits=bits, backend="cpu")
    x = samples(300, torch.float32, odd=False)
    assert_equal(both(module, x), both(lambda t: f(t, bits=bits, backend="cpu"), x))
    assert module.levels.numel() == 2**bits
    assert len(both(module, x)[1].div(upstream(300, torch.float32)).round(decimals=4).unique()) > 1


@pytest.mark.parametrize(
    "name", ["SiLU", "ELU", "CELU", "SELU", "Mish", "Hardswish", "ReLU", "ReLU6"]
)
def test_inplace_is_taken_and_changes_nothing(name):
    module = getattr(fewbit, name)(inplace=True)
    x = samples(100, torch.float32, odd=False)
    before = x.clone()
    y = module(x)
    assert_same_bits(x, before)
    assert y.data_ptr() != x.data_ptr()
    for arguments in ((0.2, True), (0.2, False)):
        assert_same_bits(fewbit.LeakyReLU(*arguments)(x), nn.functional.leaky_relu(x, 0.2))
    assert_same_bits(fewbit.Threshold(0.1, 0.2, True)(x), nn.functional.threshold(x, 0.1, 0.2))
    assert_same_bits(fewbit.Hardtanh(-1.0, 1.0, inplace=True)(x), nn.functional.hardtanh(x))


@pytest.mark.parametrize(
    "unit", [fewbit.SwiGLU, fewbit.GEGLU, lambda **o: fewbit.GEGLU("tanh", **o)]
)
@pytest.mark.parametrize("keep", ["up", "gate"])
def test_gated_modules(unit, keep):
    module = unit(bits=2, keep=keep, backend="cpu")
    gate, up = (samples((5, 40), torch.float32, seed=s, odd=False) for s in (1, 2))
    f = fewbit.swiglu if isinstance(module, fewbit.SwiGLU) else fewbit.geglu
    fixed = {"approximate": "tanh"} if module.name == "gelu_tanh" else {}
    due = both(lambda g: f(g, up, bits=2, keep=keep, backend="cpu", **fixed), gate)
    assert_equal(both(lambda g: module(g, up), gate), due)
    assert f"bits=2, keep='{keep}'" in repr(module)
    assert_equal(both(lambda g: copy.deepcopy(module)(g, up), gate), due)
    assert_equal(both(lambda g: pickle.loads(pickle.dumps(module))(g, up), gate), due)


# ------------------------------------------------------------------------------------- state_dict


@pytest.mark.parametrize("case", SMOOTH, ids=ids)
def test_state_dict_round_trip(case):
    """Codebooks travel, also to a module whose codebook has another number of borders."""
    name, arguments, _ = case
    source = getattr(fewbit, name)(*arguments, bits=3, backend="cpu")
    fitted = fewbit.fit_codebook(source.name, 3, std=2.5, params=source.params, mode="interval")
    source.codebook = fitted
    state = source.state_dict()
    assert list(state) == list(TABLES)
    target = getattr(fewbit, name)(*arguments, bits=3, backend="cpu")
    target.load_state_dict(state)
    x = samples(300, torch.float32, odd=False) * 2
    assert_equal(both(target, x), both(source, x))
    for buffer in TABLES:
        assert_same_bits(getattr(target, buffer), getattr(source, buffer))
        assert getattr(target, buffer).data_ptr() != getattr(source, buffer).data_ptr()


def test_another_number_of_borders():
    by_value = fewbit.fit_codebook("tanh", 3)
    by_interval = fewbit.fit_codebook("tanh", 3, mode="interval")
    assert len(by_value.borders) != len(by_interval.borders)
    source, target = fewbit.Tanh(codebook=by_value), fewbit.Tanh(codebook=by_interval)
    model, other = nn.Sequential(nn.Linear(2, 2), source), nn.Sequential(nn.Linear(2, 2), target)
    other.load_state_dict(model.state_dict())
    assert_same_bits(target.borders, source.borders)
    assert target.codebook.borders.tolist() == by_value.borders.tolist()
    again = fewbit.Tanh(codebook=by_interval)
    again.load_state_dict(source.state_dict(), assign=True)
    assert_same_bits(again.borders, source.borders)


def test_checkpoint_of_torch_nn_loads():
    """Strictly, both ways round the activation; the codebook stays as it was made."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2), nn.ReLU())
    ours = nn.Sequential(nn.Linear(3, 4), fewbit.GELU(), nn.Linear(4, 2), fewbit.ReLU())
    before = ours[1].levels.clone()
    result = ours.load_state_dict(plain.state_dict())
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert_same_bits(ours[0].weight.detach(), plain[0].weight.detach())
    assert_same_bits(ours[1].levels, before)
    assert set(ours.state_dict()) - set(plain.state_dict()) == {f"1.{b}" for b in TABLES}


def spoilt(**changes):
    state = fewbit.GELU(bits=2).state_dict()
    for key, change in changes.items():
        state[key] = change(state[key].clone())
    return state


CORRUPT = {
    "borders-descending": (
        spoilt(borders=lambda t: t.flip(0)),
        "borders must be strictly ascending",
    ),
    "borders-nan": (spoilt(borders=lambda t: t.fill_(torch.nan)), "borders must be finite"),
    "borders-too-few": (spoilt(borders=lambda t: t[:-1]), "codes must have"),
    "code-too-large": (spoilt(codes=lambda t: t.fill_(4)), r"codes of 2 bits must be in \[0, 4\)"),
    "levels-of-other-bits": (spoilt(levels=lambda t: t.repeat(2)), r"2\*\*bits = 4 entries"),
    "levels-infinite": (spoilt(levels=lambda t: t.fill_(torch.inf)), "levels must be finite"),
    "two-dimensional": (spoilt(levels=lambda t: t[None]), "1 dimension"),
    "four-bits": (fewbit.GELU(bits=4).state_dict(), "not a codebook of 2 bits"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_codebook_is_rejected(name):
    """Before anything is changed, and with what is wrong with it."""
    state, message = CORRUPT[name]
    module = nn.Sequential(fewbit.GELU(bits=2, backend="cpu"))
    x = samples(100, torch.float32, odd=False)
    due = both(module, x)
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict({f"0.{k}": v for k, v in state.items()})
    assert_equal(both(module, x), due)


def test_incomplete_codebook_is_rejected():
    module = fewbit.GELU(bits=2)
    state = module.state_dict()
    del state["levels"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"levels"'):
        module.load_state_dict(state)


def test_stochastic_codebook_round_trip():
    source = fewbit.SiLU(bits=2, stochastic=True)
    target = fewbit.SiLU(bits=2, stochastic=True)
    target.load_state_dict(source.state_dict())
    assert_same_bits(target.levels, source.levels)
    assert target.codebook.mode == "stochastic"


# ------------------------------------------------------------------------------ moves and copies


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.float(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float64),
        lambda m: m.type(torch.half),
    ],
    ids=["half", "bfloat16", "double", "float", "to-bfloat16", "to-cpu-float64", "type-half"],
)
def test_tables_keep_their_dtype(cast):
    model = nn.Sequential(nn.Linear(4, 4), fewbit.GELU(bits=3, backend="cpu"))
    due = {k: v.clone() for k, v in model[1].state_dict().items()}
    cast(model)
    for name, table in model[1].named_buffers():
        assert_same_bits(table, due[name])
    x = samples((6, 4), model[0].weight.dtype, odd=False)
    model(x).sum().backward()
    assert model[0].weight.grad.dtype == model[0].weight.dtype
    assert model[0].weight.grad.count_nonzero() > 8


@pytest.mark.parametrize("case", ALL, ids=ids)
def test_copies(case):
    """deepcopy, pickle and torch.save of the whole module."""
    name, arguments, _ = case
    options = {"bits": 2} if case in SMOOTH else {}
    module = getattr(fewbit, name)(*arguments, **options, backend="cpu").eval()
    x = samples(200, torch.float32, odd=False)
    due = both(module, x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert_equal(both(other, x), due)
        assert repr(other) == repr(module) and not other.training
        for (_, a), (_, b) in zip(other.named_buffers(), module.named_buffers(), strict=True):
            assert a.data_ptr() != b.data_ptr()


def test_checkpoint_file_loads_with_weights_only():
    module = nn.Sequential(nn.Linear(2, 2), fewbit.GELU())
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))


def test_repr():
    shown = {
        "GELU(bits=3)": fewbit.GELU(),
        "GELU(approximate='tanh', bits=2)": fewbit.GELU("tanh", bits=2),
        "ELU(alpha=0.5, bits=3)": fewbit.ELU(0.5),
        "Softplus(beta=2, threshold=5, bits=4)": fewbit.Softplus(2, 5, bits=4),
        "SiLU(bits=1, stochastic=True)": fewbit.SiLU(bits=1, stochastic=True),
        "ReLU(bits=1)": fewbit.ReLU(),
        "LeakyReLU(negative_slope=0.2, bits=1)": fewbit.LeakyReLU(0.2),
        "Hardtanh(min_val=-2, max_val=3, bits=1)": fewbit.Hardtanh(-2.0, 3.0),
        "SwiGLU(bits=3, keep='up')": fewbit.SwiGLU(),
        "GEGLU(bits=2, keep='gate')": fewbit.GEGLU(bits=2, keep="gate"),
    }
    for text, module in shown.items():
        assert repr(module) == text


def test_codebook_property():
    """What is assigned is read back, and used by the next call."""
    module = fewbit.GELU(bits=2, backend="cpu")
    fitted = fewbit.fit_codebook("gelu", 2, mean=1.0, std=0.3)
    module.codebook = fitted
    read = module.codebook
    for table in TABLES:
        assert getattr(read, table).tolist() == getattr(fitted, table).tolist()
    assert read.mse == fitted.mse and read.bits == 2 and read.name == "gelu"
    x = samples(100, torch.float32, odd=False)
    assert_equal(
        both(module, x), both(lambda t: fewbit.gelu(t, bits=2, codebook=fitted, backend="cpu"), x)
    )
    with pytest.raises(ValueError, match="codebook: expected a codebook of bits=2, got 3"):
        module.codebook = fewbit.fit_codebook("gelu", 3)
    with pytest.raises(TypeError, match="codebook: expected a sublimate"):
        module.codebook = "gelu"
    assert module.codebook.levels.tolist() == fitted.levels.tolist()


def test_stochastic_module_in_training():
    """Each forward draws its own seed from torch's generator, eval and no_grad draw none."""
    module = fewbit.SiLU(bits=2, stochastic=True, backend="cpu")
    x = samples(400, torch.float32, odd=False)
    torch.manual_seed(9)
    first, second = both(module, x)[1], both(module, x)[1]
    torch.manual_seed(9)
    assert_same_bits(both(module, x)[1], first)
    assert (first != second).double().mean() > 0.05
    state = torch.get_rng_state()
    module(x)
    with torch.no_grad():
        module(x.clone().requires_grad_())
    assert torch.equal(torch.get_rng_state(), state)


def test_input_on_another_device_is_refused():
    with pytest.raises(ValueError, match="x: expected a tensor on the module's cpu, got meta"):
        fewbit.GELU()(torch.empty(3, device="meta"))


def test_backend_of_a_module(calls):
    x = samples(10, torch.float32, odd=False)
    fewbit.GELU(backend="reference")(x)
    fewbit.ReLU(backend="reference")(x)
    assert not calls
    fewbit.GELU(backend="cpu")(x)
    fewbit.ReLU(backend="cpu")(x)
    assert calls["cpu"] == 2
    for make in (fewbit.GELU, fewbit.ReLU, fewbit.SwiGLU):
        with pytest.raises(ValueError, match=r"backend: expected one of .* got 'gpu'"):
            make(backend="gpu")


def test_shared_tables_are_not_the_cached_ones():
    """Writing into one module's buffers reaches neither another module nor the functions."""
    a, b = fewbit.GELU(bits=3, backend="cpu"), fewbit.GELU(bits=3, backend="cpu")
    x = samples(100, torch.float32, odd=False)
    due = both(b, x)
    a.levels.zero_()
    assert_equal(both(b, x), due)
    assert_equal(both(lambda t: functional.gelu(t, backend="cpu"), x), due)
    assert both(a, x)[1].count_nonzero() == 0
