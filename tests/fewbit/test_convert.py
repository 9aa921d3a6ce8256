"""convert and restore: what is replaced, what is said of the rest, that errors change nothing."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from helpers.fewbit_cases import samples
from helpers.parity import assert_same_bits
from sublimate import fewbit
from sublimate.fewbit import modules
from torch import nn

NN = [
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(0.5), nn.CELU(1.5),
    nn.SELU(), nn.Softplus(2.0, 4.0), nn.Mish(), nn.Hardswish(), nn.LogSigmoid(), nn.Softsign(),
    nn.Tanhshrink(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.Threshold(0.2, -1.0),
    nn.Hardtanh(-0.5, 1.5), nn.Hardsigmoid(), nn.Hardshrink(0.4), nn.Softshrink(0.4),
]  # fmt: skip


def snapshot(model):
    """Everything about the model that convert may touch."""
    places = {name: id(m) for name, m in model.named_modules(remove_duplicate=False)}
    held = {
        (name, key): id(value)
        for name, m in model.named_modules()
        for key, value in vars(m).items()
        if callable(value)
    }
    return places, held, list(model.state_dict()), [m.training for m in model.modules()]


@pytest.mark.parametrize("old", NN, ids=repr)
def test_every_torch_module(old):
    """The replacement has the same parameters: same values, and few bits kept."""
    model = nn.Sequential(nn.Linear(4, 4), old)
    x = samples((30, 4), torch.float32, odd=False)
    due = model(x)
    report = fewbit.convert(model, bits=2)
    assert type(model[1]).__name__ == type(old).__name__
    assert isinstance(model[1], (modules.FewBitActivation, modules.ExactActivation))
    torch.testing.assert_close(model(x), due, rtol=1e-6, atol=1e-6)
    assert [(r.name, r.was) for r in report.replaced] == [("1", repr(old))]
    assert report.skipped == []
    assert model[1].bits == (2 if isinstance(model[1], modules.FewBitActivation) else 1)
    model(x).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert fewbit.restore(model) == 1 and model[1] is old


class Block(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 16), act, nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def test_nested_and_shared():
    """One activation object in several places becomes one object, and restores to the same one."""
    act = nn.GELU()
    model = nn.Sequential(Block(act), nn.Sequential(Block(act), nn.Dropout(0.1)), Block(nn.SiLU()))
    before = snapshot(model)
    report = fewbit.convert(model)
    assert [r.name for r in report.replaced] == ["0.act", "1.0.act", "2.act"]
    assert model[0].act is model[1][0].act and model[0].act is not model[2].act
    assert isinstance(model[2].act, fewbit.SiLU)
    assert fewbit.restore(model) == 3
    assert snapshot(model) == before
    assert model[0].act is act and model[1][0].act is act


def test_converting_again():
    """Already converted places stay; restore gives the originals, not the first replacement."""
    act = nn.GELU()
    model = nn.Sequential(act, nn.Linear(3, 3))
    fewbit.convert(model, bits=3)
    first = model[0]
    assert fewbit.convert(model, bits=1).replaced == []
    assert model[0] is first and model[0].bits == 3
    fewbit.restore(model)
    assert model[0] is act
    fewbit.convert(model, bits=1)
    assert model[0].bits == 1
    assert fewbit.restore(model) == 1 and fewbit.restore(model) == 0


def test_training_mode_and_hooks_follow():
    model = nn.Sequential(nn.GELU(), nn.Dropout()).eval()
    fewbit.convert(model)
    assert not model[0].training
    model.train()
    fewbit.restore(model)
    assert model[0].training


def test_originals_are_no_submodules():
    """Neither state_dict nor parameters() nor a deepcopy sees the kept original twice."""
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    keys = set(model.state_dict())
    fewbit.convert(model)
    assert set(model.state_dict()) - keys == {"1.borders", "1.codes", "1.levels"}
    assert [type(m).__name__ for m in model.modules()] == ["Sequential", "Linear", "GELU"]
    twin = copy.deepcopy(model)
    assert fewbit.restore(twin) == 1 and type(twin[1]) is nn.GELU
    assert isinstance(model[1], fewbit.GELU)


# ----------------------------------------------------------------- functions held as attributes


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", F.silu, torch.tanh], ids=lambda f: str(getattr(f, "__name__", f))
)
def test_transformer_encoder_layer(activation, calls):
    """torch keeps its activation as a function; it comes back as the very same object."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True)
    original = layer.activation
    x = samples((2, 5, 8), torch.float32, odd=False)
    due = layer(x)
    due.square().sum().backward()
    report = fewbit.convert(layer, bits=4)
    assert [r.name for r in report.replaced] == ["activation"]
    assert isinstance(layer.activation, (modules.FewBitActivation, modules.ExactActivation))
    layer.activation.backend = "cpu"
    layer.zero_grad()
    calls.clear()
    y = layer(x)
    torch.testing.assert_close(y, due, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    assert calls["fewbit_fwd"] == calls["fewbit_bwd"] == 1
    assert layer.linear1.weight.grad.abs().sum() > 0
    assert fewbit.restore(layer) == 1
    assert layer.activation is original and "activation" not in layer._modules


def test_whole_transformer():
    model = nn.Transformer(8, 2, 2, 2, 16, 0.0, F.gelu, batch_first=True)
    before = snapshot(model)
    report = fewbit.convert(model)
    assert len(report.replaced) == 4
    x = samples((2, 5, 8), torch.float32, odd=False)
    model(x, x).sum().backward()
    fewbit.restore(model)
    assert snapshot(model) == before


class Held(nn.Module):
    """Attributes that are callable and are no activation."""

    def __init__(self):
        super().__init__()
        self.loss, self.norm, self.build = F.cross_entropy, torch.nn.functional.normalize, dict
        self.act = F.silu

    def forward(self, x):
        return self.act(x)


def test_other_callables_stay():
    model = Held()
    fewbit.convert(model)
    assert model.loss is F.cross_entropy and model.build is dict
    assert isinstance(model.act, fewbit.SiLU)


# ------------------------------------------------------------------------------------- transformers


@pytest.fixture
def transformers(monkeypatch):
    """The transformers library's activation classes: its own, or as it defines them."""
    try:
        from transformers import activations

        return activations
    except ImportError:
        pass
    package, module = types.ModuleType("transformers"), types.ModuleType("transformers.activations")
    forwards = {
        "GELUActivation": lambda self, x: F.gelu(x),
        "NewGELUActivation": lambda self, x: F.gelu(x, approximate="tanh"),
        "FastGELUActivation": lambda self, x: F.gelu(x, approximate="tanh"),
        "PytorchGELUTanh": lambda self, x: F.gelu(x, approximate="tanh"),
        "GELUTanh": lambda self, x: F.gelu(x, approximate="tanh"),
        "SiLUActivation": lambda self, x: F.silu(x),
        "MishActivation": lambda self, x: F.mish(x),
        "QuickGELUActivation": lambda self, x: x * torch.sigmoid(1.702 * x),
    }
    for name, forward in forwards.items():
        made = type(name, (nn.Module,), {"forward": forward, "__module__": module.__name__})
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.activations", module)
    return module


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GELUActivation", "gelu"),
        ("NewGELUActivation", "gelu_tanh"),
        ("FastGELUActivation", "gelu_tanh"),
        ("PytorchGELUTanh", "gelu_tanh"),
        ("GELUTanh", "gelu_tanh"),
        ("SiLUActivation", "silu"),
        ("MishActivation", "mish"),
    ],
)
def test_transformers_activations(transformers, name, kind):
    made = getattr(transformers, name, None)
    if made is None:
        pytest.skip(f"this version of transformers has no {name}; there is nothing to convert")
    model = nn.Sequential(nn.Linear(4, 4), made())
    x = samples((40, 4), torch.float32, odd=False)
    due = model(x)
    report = fewbit.convert(model, bits=2)
    assert model[1].name == kind and model[1].bits == 2 and report.skipped == []
    torch.testing.assert_close(model(x), due, rtol=1e-4, atol=1e-4)
    fewbit.restore(model)
    assert isinstance(model[1], made)


def test_transformers_activation_without_a_counterpart(transformers):
    model = nn.Sequential(transformers.QuickGELUActivation())
    report = fewbit.convert(model)
    assert report.replaced == []
    assert report.skipped == [("0", "QuickGELUActivation has no few-bit form")]


def test_same_name_elsewhere_is_left_alone():
    class GELUActivation(nn.Module):
        def forward(self, x):
            return x

    model = nn.Sequential(GELUActivation())
    assert fewbit.convert(model).replaced == []


# ------------------------------------------------------------------------ what it says it left


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.GELU()

    def forward(self, x):
        return torch.tanh(F.silu(self.linear(self.act(x))))


def test_functional_calls_are_reported():
    model = nn.Sequential(Functional(), nn.Linear(4, 4))
    report = fewbit.convert(model)
    assert [r.name for r in report.replaced] == ["0.act"]
    assert len(report.skipped) == 1
    place, why = report.skipped[0]
    assert place == "0" and "silu" in why and "tanh" in why and "Functional" in why
    text = str(report)
    assert "replaced 1" in text and "0.act: GELU(approximate='none') -> GELU(bits=3)" in text
    assert "not converted 1" in text


def test_functional_calls_seen_while_calibrating():
    """A call hidden behind a helper is found when batches run."""

    def hidden(x):
        return F.softplus(x)

    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x):
            return hidden(self.act(x))

    model = nn.Sequential(Sly())
    assert fewbit.convert(model).skipped == []
    fewbit.restore(model)
    report = fewbit.convert(model, calibrate=[samples((50, 4), torch.float32, odd=False)])
    assert report.skipped == [("0", "calls softplus while running: not a module")]


def test_the_model_itself_is_an_activation():
    act = nn.GELU()
    report = fewbit.convert(act)
    assert report.replaced == [] and "the model itself" in report.skipped[0][1]
    assert "(model)" in str(report)


def test_softmax_and_others_without_a_form_stay():
    model = nn.Sequential(nn.Softmax(-1), nn.PReLU(), nn.GLU(), nn.MultiheadAttention(4, 2))
    before = snapshot(model)
    assert fewbit.convert(model).replaced == []
    assert snapshot(model) == before


# -------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 0}, ValueError, "bits: expected an int from 1 to 4, got 0"),
        ({"bits": 5}, ValueError, "bits: expected an int from 1 to 4, got 5"),
        ({"bits": True}, TypeError, "bits: expected an int from 1 to 4, got bool"),
        ({"bits": 2.0}, TypeError, "bits: expected an int from 1 to 4, got float"),
        ({"calibrate": 7}, TypeError, "calibrate: expected an iterable of batches, got int"),
        ({"calibrate": torch.zeros(3)}, TypeError, "calibrate: expected an iterable of batches"),
        (
            {"calibrate": ["text"]},
            TypeError,
            "calibrate: expected batches that are tensors, tuples",
        ),
        ({"calibrate": [torch.zeros(3, 99)]}, RuntimeError, "shapes cannot be multiplied"),
        ({"calibrate": [torch.full((9, 4), torch.nan)]}, ValueError, "samples"),
        ({"calibrate": [torch.zeros(1, 4)]}, ValueError, "samples"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_errors_leave_the_model_unchanged(arguments, error, message):
    model = nn.Sequential(nn.Linear(4, 2), nn.GELU(), nn.TransformerEncoderLayer(2, 1, 2))
    before = snapshot(model)
    with pytest.raises(error, match=message):
        fewbit.convert(model, **arguments)
    assert snapshot(model) == before
    for m in model.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks


def test_model_of_another_type():
    for call in (fewbit.convert, fewbit.restore):
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got function"):
            call(F.silu)


def test_failed_calibration_of_a_converted_model_keeps_it_converted():
    """Undoing a failed call undoes that call, not an earlier one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    fewbit.convert(model, bits=2)
    converted = model[1]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fewbit.convert(model, bits=2, calibrate=[torch.zeros(3, 99)])
    assert model[1] is converted


def test_failed_fit_changes_no_codebook():
    """The first layer's inputs can be fitted and the second's cannot: neither is."""

    class Spoil(nn.Module):
        def forward(self, x):
            return x * torch.nan

    model = nn.Sequential(nn.GELU(), Spoil(), nn.SiLU())
    fewbit.convert(model)
    before = model[0].levels.clone()
    with pytest.raises(ValueError, match="samples"):
        fewbit.convert(model, calibrate=[samples((100, 4), torch.float32, odd=False) * 3])
    assert_same_bits(model[0].levels, before)


def test_device_of_the_replacement():
    model = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.GELU())
    fewbit.convert(model)
    assert model[1].levels.is_meta


def test_what_a_replaced_module_holds_is_left_alone():
    """transformers' GELUActivation holds torch's function as an attribute of its own."""

    class GELUActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = F.gelu

        def forward(self, x):
            return self.act(x)

    GELUActivation.__module__ = "transformers.activations"
    model = nn.Sequential(nn.Linear(3, 3), GELUActivation())
    old = model[1]
    assert [r.name for r in fewbit.convert(model).replaced] == ["1"]
    assert old.act is F.gelu
    assert fewbit.restore(model) == 1
    assert model[1] is old and old.act is F.gelu
