"""The benchmark harness, end to end on tiny data; nothing here looks at a time's value."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.processes import environment
from sublimate import _native, fewbit
from sublimate._parity import Measurement
from sublimate.cli import app
from typer.testing import CliRunner

from bench.fewbit.cases import cases
from bench.harness import plots, record, run, runner, show, timing, worker
from bench.harness.case import Provider

CASE = "fewbit/gelu/3bit/float32/2^14/cpu"


@pytest.fixture(scope="module", autouse=True)
def needs_cpu_kernels():
    if _native.CPU.reason() is not None:
        pytest.skip(f"needs the compiled CPU module: {_native.CPU.reason()}")


def tiny(identity=CASE):
    return next(c for c in cases(quick=True) if c.id == identity)


def test_end_to_end(tmp_path):
    """The command in two allocator regimes, its CSV, and its plots."""
    out, folder = tmp_path / "r" / "x.csv", tmp_path / "plots"
    arguments = ["bench", "--quick", "--case", CASE, "--provider", "eager", "--json"]
    arguments += ["--provider", "sublimate-cpu", "--rounds", "3", "--threads", "1"]
    arguments += ["--out", str(out), "--plots", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["passed"] and report["csv"] == [str(out)]
    with out.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        assert tuple(reader.fieldnames) == record.COLUMNS
    keys = {(r["allocator"], r["provider"], r["mode"]) for r in rows}
    providers = ("eager", "sublimate-cpu")
    assert keys == {
        (a, p, m) for a in ("warm", "cold") for p in providers for m in ("fwd", "bwd", "both")
    }
    n = 2**14
    for row in rows:
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert row["samples"] == "3" and row["threads"] == "1" and row["elements"] == str(n)
        assert row["torch"] == torch.__version__ and row["device"] and row["timestamp"]
        assert row["bound"] in ("memory", "compute", "dispatch") and float(row["fraction"]) > 0
        assert float(row["copy_gbs"]) > 0 and float(row["matmul_gflops"]) > 0
        ours = row["provider"] != "eager"
        assert row["parity"] == ("pass" if ours else "peer")
        assert float(row["ratio_eager"]) > 0 and (ours or float(row["ratio_eager"]) == 1)
        # The codes and a table of eight levels, against the input.
        assert int(row["saved_bytes"]) == (n * 3 // 8 + 8 * 4 if ours else 4 * n)
        if row["mode"] == "fwd":
            assert int(row["peak_bytes"]) == 4 * n + ours * n * 3 // 8
    assert sorted(p.name for p in folder.iterdir()) == sorted(Path(p).name for p in report["plots"])
    assert all((folder / name).stat().st_size > 0 for name in os.listdir(folder))

    # A second run appends; a file of another version is refused.
    record.append(out, rows[:2])
    assert len(record.read(out)) == len(rows) + 2
    assert len(plots.latest(out)) == len(rows)
    out.write_text("timestamp,other\n")
    with pytest.raises(ValueError, match="expected the columns"):
        record.append(out, rows[:2])


def test_worker_has_the_allocator_of_its_regime(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    seen = []

    class Stop(Exception):
        pass

    def spy(command, env, **options):
        seen.append(env)
        raise Stop

    monkeypatch.setattr(subprocess, "Popen", spy)
    for regime in ("warm", "cold"):
        with pytest.raises(Stop):
            next(worker.launch(regime, ("fewbit",), "*", 3, 1, True, ()))
    warm, cold = seen
    assert {k: warm[k] for k in worker.WARM} == worker.WARM
    assert warm["MALLOC_MMAP_MAX_"] == "0" and warm["OMP_NUM_THREADS"] == "3"
    assert not any(k.startswith("MALLOC_") for k in cold)


def test_worker_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match=r"worker \(cold\) ended with [1-9]"):
        list(worker.launch("cold", ("nonesuch",), "*", 1, 1, True, ()))


def wrong_gradient(x):
    return fewbit.gelu(x, bits=3, backend="cpu") + 1e-3 * x


def raises(x):
    raise RuntimeError("planted kernel error")


@pytest.mark.parametrize("forward", [wrong_gradient, raises])
def test_planted_parity_failure_has_no_speed_up(monkeypatch, tmp_path, capsys, forward):
    case = tiny()
    providers = (case.providers[0], Provider("sublimate-cpu", lambda: forward))
    planted = replace(case, providers=providers)
    rows = runner.run([planted], "cold", 2, True)
    red = [r for r in rows if r["provider"] == "sublimate-cpu"]
    assert len(red) == 1 and red[0]["parity"] == "red" and red[0]["note"]
    assert not {"p50_ms", "ratio_eager", "fraction", "bar_met"} & red[0].keys()
    assert {r["mode"] for r in rows if r["provider"] == "eager"} == {"fwd", "bwd", "both"}

    monkeypatch.setattr(run, "execute", lambda *_: rows)
    out = tmp_path / "red.csv"
    status = run.main(("fewbit",), "*", "cold", 1, 2, True, (), out, None, False)
    text = capsys.readouterr().out
    assert status == 1
    line = next(part for part in text.splitlines() if "PARITY RED" in part)
    assert "x" not in line.replace("sublimate-cpu", "")
    assert "parity red, not timed" in text
    written = [r for r in record.read(out) if r["parity"] == "red"]
    assert len(written) == 1 and not written[0]["ratio_eager"] and not written[0]["p50_ms"]


def test_red_makes_the_command_fail(monkeypatch, tmp_path):
    rows = [
        {"case": CASE, "provider": "sublimate-cpu", "parity": "red", "device": "x", "note": "n"}
    ]
    monkeypatch.setattr(run, "execute", lambda *_: rows)
    result = CliRunner().invoke(app, ["bench", "--json", "--out", str(tmp_path / "x.csv")])
    assert result.exit_code == 1
    assert json.loads(result.output)["passed"] is False


def test_verify_sees_an_error_far_from_the_start():
    case = tiny("fewbit/gelu/3bit/float32/2^14/cpu")
    case = replace(case, shapes=((2**17,),))
    inputs, dy = case.inputs()

    def late(x):
        y = fewbit.gelu(x, bits=3, backend="cpu")
        if x.numel() < 2**17:
            return y
        return torch.cat([y[:-5], y[-5:] + 0.25])

    good = lambda x: fewbit.gelu(x, bits=3, backend="cpu")  # noqa: E731
    assert all(m.passed for m in case.verify(good, inputs, dy))
    bad = [m for m in case.verify(late, inputs, dy) if not m.passed]
    assert bad and all(m.quantity == "forward" for m in bad)


@pytest.mark.parametrize("case", [c for c in cases(True) if c.device == "cpu"], ids=lambda c: c.id)
def test_every_case_verifies(case):
    """Our provider of each case passes its own gate, and its traffic is what its shapes say."""
    ours = next(p for p in case.providers if p.name == "sublimate-cpu")
    inputs, dy = case.inputs()
    measured = case.verify(ours.make(), inputs, dy)
    assert measured and all(isinstance(m, Measurement) and m.passed for m in measured)
    tensors = len(case.shapes) + 1
    codes = -(-case.elements // 32) * 4 * case.bits
    size = case.dtype.itemsize * case.elements
    assert case.bytes_moved["fwd"] == tensors * size + codes
    assert case.bytes_moved["both"] == case.bytes_moved["fwd"] + case.bytes_moved["bwd"]
    assert all(case.flops[m] > 0 for m in case.modes)


def test_required_cases():
    found = {c.id: c for c in cases()}
    for op in ("gelu", "silu"):
        for dtype in ("float32", "bfloat16"):
            on_cpu = found[f"fewbit/{op}/3bit/{dtype}/2^24/cpu"]
            assert on_cpu.bars == {"fwd": 1.1, "bwd": 0.5, "both": 0.8}
            on_gpu = found[f"fewbit/{op}/3bit/{dtype}/2^26/cuda"]
            assert on_gpu.least_fraction == 0.85 and on_gpu.bars == {"both": 1.0}
    for bits in (1, 2, 4):
        assert f"fewbit/gelu/{bits}bit/float32/2^24/cpu" in found
    assert "fewbit/relu/1bit/float32/2^24/cpu" in found
    assert "fewbit/gelu/3bit/float32/8/cpu" in found
    assert any(c.op == "swiglu" and c.shapes[0][1] == 14336 for c in found.values())
    assert len(found) == len(cases())


def test_interleaving_rotates(monkeypatch):
    order = []

    def sample(mode, forward, inputs, dy, calls):
        order.append(forward())
        return 1.0

    monkeypatch.setattr(timing, "cpu_sample", sample)
    case = replace(tiny(), modes=("fwd",))
    forwards = {name: (lambda name=name: name) for name in "abc"}
    samples = timing.interleave(case, forwards, (), torch.zeros(1), 3, True)
    assert all(len(s) == 3 for s in samples.values())
    rounds = ["".join(order[k : k + 3]) for k in range(0, 12, 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]


def test_peak_bytes():
    def call():
        a = torch.ones(1000)
        b = a + 1
        del a
        return torch.cat([b, b])

    assert timing.peak_bytes("cpu", call) == 4 * 3000


def test_unavailable_provider_is_told_not_red():
    case = replace(tiny(), providers=(tiny().providers[0], _on_gpu()))
    rows = runner.run_case(case, "cold", 1, True)
    told = [r for r in rows if r["provider"] == "sublimate-cuda"]
    assert len(told) == 1 and told[0]["parity"] == "" and told[0]["note"]
    assert any("not run" in remark for remark in show.remarks(rows))


def _on_gpu():
    from bench.fewbit.cases import _ours

    return _ours("gelu", 3, "cuda", "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon"),
        ("AMD EPYC 9B14", "amd-epyc-9b14"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_slug(name, slug):
    assert record.slug(name) == slug


def test_pytest_collects_the_benchmarks():
    root = Path(run.__file__).parents[2]
    env = environment(BENCH_QUICK="1")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    found = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"bench_activation[{CASE}/sublimate-cpu-fwd]" in found.stdout
