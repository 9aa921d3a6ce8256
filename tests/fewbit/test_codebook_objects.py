"""Codebooks as objects: the shipped table, storage, printing, devices, and every refusal."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle

import pytest
import torch
from sublimate.fewbit import codebook as module
from sublimate.fewbit.codebook import (
    Codebook,
    GatedCodebook,
    default_codebook,
    default_gated_codebook,
    fit_codebook,
    fit_gated_codebook,
    normal_codebook,
)
from sublimate.fewbit.reference import FUNCTIONS

SMOOTH = [name for name, function in FUNCTIONS.items() if not function.exact]
EXACT = [name for name, function in FUNCTIONS.items() if function.exact]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


# ---------------------------------------------------------------------------------------------
# Ready codebooks


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_auto_is_at_most_one_percent_worse_and_never_has_more_borders(name, bits):
    auto, best = default_codebook(name, bits, mode="auto"), default_codebook(name, bits)
    assert auto.mse <= 1.01 * best.mse
    assert len(auto.borders) <= len(best.borders)
    assert auto is best or auto == fit_codebook(name, bits, mode="interval")


def test_table_file_is_what_the_module_writes():
    text = module._TABLE.read_text()
    stored = json.loads(text)
    assert len(text) < 60_000
    intervals = {
        "interval/gelu/3",
        "interval/gelu_tanh/3",
        "interval/silu/4",
    }  # what "auto" prefers
    assert {key for key in stored if key.startswith("interval")} == intervals
    assert len(stored) == len(SMOOTH) * 8 + 4 + 12 + len(intervals)
    fresh = {
        "value/gelu/4": fit_codebook("gelu", 4),
        "stochastic/mish/3": fit_codebook("mish", 3, mode="stochastic"),
        "value/half_square/2": fit_codebook("half_square", 2),
        "gated/silu/3": fit_gated_codebook("silu", 3),
    }
    for key, code in fresh.items():
        assert stored[key] == module._entry(code), key
    assert default_codebook("gelu", 4) == fresh["value/gelu/4"]
    assert default_codebook("mish", 3, mode="stochastic") == fresh["stochastic/mish/3"]
    assert normal_codebook(2) == fresh["value/half_square/2"]
    assert default_gated_codebook("silu", 3) == fresh["gated/silu/3"]


@pytest.mark.parametrize("name", SMOOTH)
def test_defaults(name):
    for bits, mode in itertools.product((1, 4), ("value", "stochastic", "interval")):
        code = default_codebook(name, bits, mode=mode)
        assert code is default_codebook(name, bits, FUNCTIONS[name].defaults, mode)
        assert (code.name, code.bits, code.mode) == (name, bits, mode)
        assert code.fn is FUNCTIONS[name].forward and code.builtin
        for table in (code.borders, code.levels):
            assert table.equal(table.float().double())


def test_other_parameters():
    code = default_codebook("elu", 2, params=(2.0,))
    assert code is default_codebook("elu", 2, (2,))
    assert code == fit_codebook("elu", 2, params=(2.0,)) != default_codebook("elu", 2)
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * 18 - 9
    w = torch.exp(-0.5 * x * x) / torch.exp(-0.5 * x * x).sum()
    v = FUNCTIONS["elu"].derivative(x, 2.0)
    assert code.mse == pytest.approx(float((w * (v - code.decode(x)) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_are_exact(name):
    code = default_codebook(name, 1)
    assert code.mse == 0 and code is default_codebook(name, 1, mode="stochastic")
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    x = x[(x[:, None] - code.borders).abs().min(1).values > 1e-6]
    torch.testing.assert_close(
        code.decode(x), FUNCTIONS[name].derivative(x, *FUNCTIONS[name].defaults), atol=1e-8, rtol=0
    )
    with pytest.raises(ValueError, match=f"bits must be 1 for {name}"):
        default_codebook(name, 2)


# ---------------------------------------------------------------------------------------------
# The classes


def some_codes():
    return [
        default_codebook("tanh", 3),
        default_codebook("mish", 2, mode="stochastic"),
        default_codebook("hardtanh", 1, (-2.0, 3.0)),
        default_gated_codebook("gelu", 2),
        normal_codebook(1),
        fit_codebook(quick_gelu, 2),
        Codebook([0.1], [1, 0], [1 / 3, 2.0], 1),
    ]


def test_round_trips():
    for code in some_codes():
        kind = type(code)
        data = json.loads(json.dumps(code.to_dict()))
        back = kind.from_dict(data)
        assert back == code and hash(back) == hash(code) and back.levels.equal(code.levels)
        for other in (pickle.loads(pickle.dumps(code)), copy.deepcopy(code)):
            assert other == code
            assert kind is GatedCodebook or other.fn is code.fn
    user = fit_codebook(quick_gelu, 2)
    assert Codebook.from_dict(user.to_dict()).fn is None
    assert default_codebook("tanh", 3) != default_codebook("tanh", 2)
    assert default_codebook("tanh", 3) != "tanh"


def test_printed_form():
    lines = str(default_codebook("gelu", 2)).splitlines()
    assert lines[0] == "Codebook(gelu, 2 bits, normal(mean=0, std=1), mode value, mse 0.0080011)"
    assert len(lines) == 5 and lines[1].split() == ["(-inf,", "-0.49896]", "code", "0", "-0.046386"]
    assert "levels" in repr(default_codebook("gelu", 2, mode="stochastic"))
    assert "values" not in repr(default_gated_codebook("gelu", 1))
    assert "mse unknown" in repr(Codebook([0.0], [0, 1], [0.0, 1.0], 1))


def test_tensors_and_decode():
    code = fit_codebook("tanh", 2)
    borders, codes, levels = code.tensors("cpu", torch.bfloat16)
    assert (borders.dtype, codes.dtype, levels.dtype) == (torch.float32, torch.uint8, torch.float32)
    assert code.tensors("cpu", torch.float16)[0] is borders
    assert code.tensors(torch.device("cpu"), torch.float64)[2].dtype == torch.float64
    assert borders.double().equal(code.borders) and levels.double().equal(code.levels)
    x = torch.tensor([[math.nan, -50.0], [0.0, float(borders[2])]])
    expected = code.levels.float()[code.codes[[-1, 0, 3, 2]]].reshape(2, 2)
    assert code.decode(x).equal(expected)  # NaN: last interval; a border: the interval on its left
    assert code.decode(x.bfloat16()).dtype == torch.float32
    gated = fit_gated_codebook("silu", 2)
    assert len(gated.tensors()) == 4 and gated.tensors()[3].double().equal(gated.values)
    slope, value = gated.decode(torch.zeros(3, dtype=torch.float64))
    assert slope.shape == value.shape == (3,)
    with pytest.raises(ValueError, match="decode needs mode 'value' or 'interval'"):
        default_codebook("gelu", 2, mode="stochastic").decode(x)


def test_tables_made_in_inference_mode_can_be_saved_for_backward():
    with torch.inference_mode():
        code = fit_codebook("gelu", 2)
        tables = code.tensors()
    assert not any(t.is_inference() for t in (*tables, code.levels, code.borders))


# ---------------------------------------------------------------------------------------------
# Refusals

OK = {"borders": [0.0], "codes": [0, 1], "levels": [0.0, 1.0], "bits": 1}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"levels": [0.0] * 4}, ValueError, r"levels must have 2\*\*bits = 2 .* bits=1, got 4"),
        ({"levels": [0.0, math.nan]}, ValueError, "levels must be finite"),
        ({"levels": [[0.0, 1.0]]}, ValueError, r"levels must have 1 dimension, got shape \(1, 2\)"),
        ({"levels": "ab"}, TypeError, "levels must be a tensor of numbers"),
        ({"levels": [0j, 1j]}, TypeError, "levels must hold torch.float64 .* got torch.complex"),
        ({"borders": [0.0, 0.0]}, ValueError, "borders must be strictly ascending"),
        ({"borders": [1.0, 0.0]}, ValueError, "borders must be strictly ascending"),
        ({"borders": [math.inf]}, ValueError, "borders must be finite"),
        ({"borders": list(range(256))}, ValueError, "borders must have at most 255 .* got 256"),
        ({"codes": [0]}, ValueError, r"codes must have len\(borders\) \+ 1 = 2 entries, got 1"),
        ({"codes": [0, 2]}, ValueError, r"codes of 1 bits must be in \[0, 2\), got \[0, 2\]"),
        ({"codes": [-1, 0]}, ValueError, "codes of 1 bits"),
        ({"codes": [0.0, 1.0]}, TypeError, "codes must hold torch.int64 values, got torch.float32"),
        ({"bits": 0}, ValueError, "bits must be 1 to 8, got 0"),
        ({"bits": 9}, ValueError, "bits must be 1 to 8, got 9"),
        ({"bits": 1.0}, TypeError, "bits must be an int, got float"),
        ({"bits": True}, TypeError, "bits must be an int, got bool"),
        ({"mode": "best"}, ValueError, "mode must be one of .* got 'best'"),
        ({"mode": "stochastic"}, ValueError, "ascending levels and no borders"),
    ],
)
def test_codebook_refusals(change, error, message):
    Codebook(**OK)
    with pytest.raises(error, match=message):
        Codebook(**{**OK, **change})


def test_gated_and_dict_refusals():
    GatedCodebook(**OK, values=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"values must have 2.*entries for bits=1, got 3"):
        GatedCodebook(**OK, values=[1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="values must be a tensor of numbers"):
        GatedCodebook(**OK)
    with pytest.raises(ValueError, match=r"missing \['levels'\], unknown \['level'\]"):
        Codebook.from_dict({"borders": [], "codes": [0], "bits": 1, "level": [0.0, 1.0]})
    with pytest.raises(ValueError, match="fn must be 'builtin' or None, got 'eval'"):
        Codebook.from_dict({**OK, "fn": "eval"})


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"fn": "swoosh"}, ValueError, "fn must be a callable or one of gelu, .* got 'swoosh'"),
        ({"fn": 3}, TypeError, "fn must be a name or a callable, got int"),
        ({"bits": 0}, ValueError, "bits must be 1 to 8, got 0"),
        ({"bits": "3"}, TypeError, "bits must be an int, got str"),
        ({"mode": "values"}, ValueError, "mode must be one of"),
        ({"density": "cauchy"}, ValueError, "density must be .* got 'cauchy'"),
        ({"density": "samples"}, ValueError, "density 'samples' needs samples"),
        ({"density": "uniform"}, ValueError, "needs low and high, got None and None"),
        ({"density": "uniform", "low": 2, "high": 1}, ValueError, "low must be less than high"),
        ({"low": 0.0, "high": 1.0}, ValueError, "low and high need density='uniform'"),
        ({"std": 0.0}, ValueError, "std must be positive, got 0.0"),
        ({"mean": math.nan}, ValueError, "mean must be finite, got nan"),
        ({"mean": "0"}, TypeError, "mean must be a number, got str"),
        ({"samples": torch.zeros(15)}, ValueError, "samples must hold 16 finite values, got 15"),
        ({"samples": [math.nan] * 50}, ValueError, "samples must hold 16 finite values, got 0"),
        ({"samples": torch.zeros(20) * 1j}, TypeError, "samples must be real numbers"),
        ({"samples": "abc"}, TypeError, "samples must be a tensor or array"),
        ({"samples": torch.zeros(20), "density": "uniform"}, ValueError, "density must be left"),
        ({"params": (1.0,)}, ValueError, r"params of gelu must be \(\), got \(1.0,\)"),
        ({"fn": "elu", "params": (math.inf,)}, ValueError, "params of elu must be finite"),
        ({"fn": "elu", "params": 2.0}, TypeError, "params must be a tuple of numbers"),
        ({"fn": quick_gelu, "params": (1.0,)}, ValueError, "params must be bound into a callable"),
        ({"fn": lambda x: x - x.mean()}, ValueError, "fn must be elementwise: an output depends"),
        ({"fn": lambda x: torch.softmax(x, 0)}, ValueError, "fn must be elementwise"),
        ({"fn": lambda x: x * torch.randn_like(x)}, ValueError, "fn must be elementwise"),
        ({"fn": lambda x: x.sum()}, ValueError, r"elementwise: shape \(1001,\) in, \(\)"),
        ({"fn": lambda x: 1.0}, ValueError, "fn must be elementwise: .* float out"),
        ({"fn": lambda x: x.detach()}, ValueError, "fn must be differentiable"),
        ({"fn": torch.log}, ValueError, "fn must be finite|finite derivative"),
        ({"fn": torch.sqrt}, ValueError, "fn must have a finite derivative on the density"),
        ({"fn": torch.nn.Linear(2, 2)}, ValueError, "fn must accept a torch.float64 tensor, got: "),
        ({"fn": lambda x: torch.sin(50 * x)}, ValueError, "255 borders; use mode='interval'"),
        ({"fn": lambda x: torch.sin(1e5 * x)}, ValueError, "20000 cells resolve"),
        ({"fn": "celu", "params": (0.0,)}, ValueError, "fn must have a finite derivative"),
    ],
)
def test_fit_refusals(arguments, error, message):
    given = {"fn": "gelu", "bits": 2, **arguments}
    with pytest.raises(error, match=message):
        fit_codebook(given.pop("fn"), given.pop("bits"), **given)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"name must be one of gelu, .* got 'nope'"):
        default_codebook("nope", 3)
    with pytest.raises(TypeError, match="name must be a str, got builtin_function"):
        default_codebook(torch.sin, 3)
    with pytest.raises(ValueError, match="mode must be one of"):
        default_codebook("gelu", 3, mode="fast")
    for make in (fit_gated_codebook, default_gated_codebook):
        with pytest.raises(ValueError, match=r"name must be one of \('gelu', .* got 'tanh'"):
            make("tanh", 3)
        with pytest.raises(ValueError, match="bits must be 1 to 8, got 12"):
            make("gelu", 12)
    with pytest.raises(ValueError, match="bits must be 1 to 8, got 0"):
        normal_codebook(0)
