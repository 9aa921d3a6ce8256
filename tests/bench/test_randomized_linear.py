"""Benchmarks of randomized linear: their gate sees errors, their numbers are the shapes'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sublimate import _native, randomized_linear
from sublimate._parity import Measurement

from bench.harness import runner
from bench.harness.case import Provider
from bench.randomized_linear.cases import BARS, DENSE, LIGHT, SEED, cases


@pytest.fixture(scope="module", autouse=True)
def needs_cpu_kernels():
    if _native.CPU.reason() is not None:
        pytest.skip(f"needs the compiled CPU module: {_native.CPU.reason()}")


TINY = [c for c in cases(quick=True) if c.device == "cpu"]
PAIRS = [(c, p) for c in TINY for p in c.providers if not p.peer]


@pytest.mark.parametrize(
    ("case", "provider"), PAIRS, ids=lambda v: getattr(v, "id", None) or v.name
)
def test_every_provider_verifies(case, provider):
    inputs, dy = case.inputs()
    measured = (provider.verify or case.verify)(provider.make(), inputs, dy)
    assert measured and all(isinstance(m, Measurement) and m.passed for m in measured)


def test_rows_of_a_case():
    """One exact layer and every sketch: own bars and operations, what is kept, its error."""
    case = next(c for c in TINY if c.op == "linear" and c.dtype == torch.float32)
    strict = tuple(replace(p, bars=None if p.peer else {"both": 1e9}) for p in case.providers)
    rows = runner.run_case(replace(case, providers=strict), "cold", 1, True)
    found = {(r["provider"], r["mode"]): r for r in rows}
    (n, i), (o, _), _ = case.shapes
    k = randomized_linear.reference.rows_kept(n, 0.2)
    whole = 4 * (n * i + o * i)
    assert found["eager", "both"]["saved_bytes"] == whole
    for sketch in DENSE + LIGHT:
        row = found[f"sublimate-cpu-{sketch}", "both"]
        extra = 4 * k if sketch in ("crs", "wta") else 8
        assert row["saved_bytes"] == 4 * (k * i + o * i) + extra
        assert row["parity"] == "pass" and row["bar_met"] == "yes"
        dense = 2 * n * k * (i + o) * (sketch in DENSE)
        assert row["flops"] == 4 * n * i * o + 2 * k * i * o + dense
        assert 0 < float(row["gradient_error"]) < 10
        assert "bar_met" not in found[f"sublimate-cpu-{sketch}", "fwd"]
    assert float(found["eager", "both"]["gradient_error"]) < 1e-5


@pytest.mark.parametrize("wrong", ["seed", "bias", "far row", "far output"])
def test_a_wrong_layer_is_red(wrong):
    case = next(c for c in cases(quick=True) if c.op == "linear")
    case = replace(case, shapes=((300, 32), (160, 32), (160,)), output=(300, 160))
    ours = next(p for p in case.providers if p.name == "sublimate-cpu-srht")

    def forward(x, weight, bias):
        seed = SEED + (wrong == "seed")
        options = {"ratio": 0.2, "sketch": "srht", "seed": seed, "backend": "cpu"}
        y = randomized_linear.linear(x, weight, bias, **options)
        bump = torch.zeros_like(y)
        if wrong == "bias":
            return y + 1e-2 * bias
        if wrong == "far row":
            bump[200] = 1e-2
        elif wrong == "far output":
            bump[:, 100] = 1e-2
        return y + bump

    planted = replace(ours, make=lambda: forward)
    (row,) = runner.run_case(replace(case, providers=(planted,)), "cold", 1, True)
    assert row["parity"] == "red" and "p50_ms" not in row


def test_required_cases():
    found = {c.id: c for c in cases()}
    assert len(found) == len(cases())
    for device in ("cpu", "cuda"):
        for dtype in ("float32", "bfloat16"):
            for shape in ("768-3072", "4096-4096"):
                for n in (4096, 16384):
                    for ratio, bars in BARS.items():
                        case = found[
                            f"randomized_linear/linear/ratio{ratio:g}/{dtype}/{n}x{shape}/{device}"
                        ]
                        named = {p.name.rpartition("-")[2]: p for p in case.providers}
                        assert set(named) >= {"eager", *LIGHT}
                        assert all(named[sketch].bars == bars for sketch in LIGHT)
                        assert "both" in case.modes
            transform = [c for c in found.values() if c.op == "hadamard" and c.device == device]
            assert any(c.shapes[0][1] == 2**20 for c in transform)
            for c in transform:
                assert c.providers[0].name == "copy" and c.bars == {"fwd": 1 / 0.8}
    assert BARS[0.2]["both"] <= 1 and BARS[0.1]["both"] < 1


def test_variant_overrides_the_case():
    case = next(c for c in TINY if c.op == "hadamard")
    plain = Provider("sublimate-cpu", case.providers[1].make)
    other = replace(
        plain,
        name="sublimate-cpu-other",
        bars={"fwd": 0.0},
        flops={"fwd": 7},
        gradient_error=lambda *_: 0.5,
        verify=lambda *_: [Measurement("v", "forward", 0.0, 1.0)],
    )
    providers = (case.providers[0], plain, other)
    rows = runner.run_case(replace(case, providers=providers), "cold", 1, True)
    first, second = (next(r for r in rows if r["provider"] == p.name) for p in (plain, other))
    assert first["flops"] == case.flops["fwd"] and second["flops"] == 7
    assert "bar_met" not in first and second["bar_met"] == "no"
    assert second["gradient_error"] == "0.5"
