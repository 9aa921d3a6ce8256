"""convert(calibrate=): codebooks fitted to what each layer sees."""

from __future__ import annotations

import pytest
import torch
from helpers.fewbit_cases import samples
from helpers.parity import assert_same_bits
from sublimate import fewbit
from sublimate.fewbit import modules
from torch import nn


def gradient_error(model, x):
    """Mean squared difference of each activation's q from the true f' on its own inputs."""
    errors, handles = {}, []
    for name, m in model.named_modules():
        if isinstance(m, modules.FewBitActivation):

            def record(m, args, y, name=name):
                t = args[0].detach()
                q = m.codebook.decode(t.double())
                true = fewbit.reference.FUNCTIONS[m.name].derivative(t.double(), *m.params)
                errors[name] = (q - true).square().mean().item()

            handles.append(m.register_forward_hook(record))
    model(x)
    for handle in handles:
        handle.remove()
    return errors


def test_calibration_fits_each_layer():
    """Inputs far from N(0, 1), other in each layer: the error falls several times in both."""
    torch.manual_seed(0)

    class Shift(nn.Module):
        def __init__(self, scale, shift):
            super().__init__()
            self.scale, self.shift = scale, shift

        def forward(self, x):
            return x * self.scale + self.shift

    model = nn.Sequential(Shift(0.2, -0.3), nn.GELU(), Shift(2.0, 2.0), nn.Tanh(), nn.ReLU())
    batches = [torch.randn(2000, 4) for _ in range(3)]
    fresh = torch.randn(4000, 4)
    fewbit.convert(model, bits=3)
    default = gradient_error(model, fresh)
    fewbit.restore(model)
    report = fewbit.convert(model, bits=3, calibrate=batches)
    fitted = gradient_error(model, fresh)
    assert default.keys() == fitted.keys() == {"1", "3"}
    assert fitted["1"] < default["1"] / 3 and fitted["3"] < default["3"] / 1.5
    assert model[1].codebook.borders.tolist() != model[3].codebook.borders.tolist()
    assert len(report.replaced) == 3
    for m in (model[1], model[3]):
        assert m.codebook.mse == pytest.approx(fitted[{id(model[1]): "1"}.get(id(m), "3")], rel=0.2)


def test_calibration_leaves_no_trace():
    """Modes, hooks, gradients and batch statistics are as before."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Dropout())
    model[3].eval()
    modes = [m.training for m in model.modules()]
    statistics = model[1].running_mean.clone()
    fewbit.convert(model, calibrate=[samples((50, 4), torch.float32, odd=False)])
    assert [m.training for m in model.modules()] == modes
    assert_same_bits(model[1].running_mean, statistics)
    assert model[0].weight.grad is None
    for m in model.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.SiLU()

    def forward(self, a, b=None):
        return self.act(a * (1 if b is None else b))


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "generator"])
def test_batches_of_every_form(kind):
    x = samples((60, 4), torch.float32, odd=False)
    batches = {
        "tensor": [x],
        "tuple": [(x, x * 0.1), (x,)],
        "dict": [{"a": x, "b": x}],
        "generator": (t for t in (x, x)),
    }[kind]
    model = TwoInputs()
    fewbit.convert(model, calibrate=batches)
    assert model.act.codebook.mse is not None
    default = fewbit.SiLU()
    assert model.act.levels.tolist() != default.levels.tolist()


def test_calibration_of_modules_already_few_bit():
    """A model built of our modules: each keeps its bits and its stochastic codes."""
    model = nn.Sequential(fewbit.GELU(bits=4), fewbit.SiLU(bits=2, stochastic=True), nn.Tanh())
    fewbit.convert(model, bits=1, calibrate=[samples((200, 4), torch.float32, odd=False) * 3])
    assert [m.bits for m in model] == [4, 2, 1]
    assert model[1].borders.numel() == 0 and model[1].codebook.mode == "stochastic"
    for m, default in zip(
        model, (fewbit.GELU(bits=4), fewbit.SiLU(bits=2, stochastic=True)), strict=False
    ):
        assert m.levels.tolist() != default.levels.tolist()
    with pytest.raises(ValueError, match='mode="stochastic"'):
        model[1].codebook = fewbit.fit_codebook("silu", 2)


def test_layers_that_never_ran_keep_the_default():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.GELU(), nn.GELU()

        def forward(self, x):
            return self.used(x)

    model = Unused()
    fewbit.convert(model, calibrate=[samples((60, 4), torch.float32, odd=False) * 3])
    assert_same_bits(model.spare.levels, fewbit.GELU().levels)
    assert model.used.levels.tolist() != model.spare.levels.tolist()


# -------------------------------------------------------------------------------------- errors
