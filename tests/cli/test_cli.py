"""The command line: help, info, and the parity suite, green and red."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from sublimate import _backends, _native, _parity
from sublimate.cli import app, bench, check
from typer.testing import CliRunner

COMMANDS = ("info", "check", "bench", "demo")


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


def test_top_level_lists_commands():
    output = run("--help").output
    assert all(command in output for command in COMMANDS)


def test_info_json():
    result = run("info", "--json")
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["torch"] == torch.__version__
    assert set(report["families"]["fewbit"]) == set(_backends.NAMES)
    assert report["families"]["fewbit"]["reference"] is None


def test_info_shows_why_a_backend_is_off(monkeypatch):
    monkeypatch.setattr(_native.CUDA, "_loaded", None)
    monkeypatch.setattr(_native.CUDA, "_reason", "no such module today")
    result = run("info")
    assert result.exit_code == 0
    assert "no such module today" in " ".join(result.output.split())


# --------------------------------------------------------------------------------------- check


def report_of(*arguments):
    result = run("check", "--json", *arguments)
    return result.exit_code, json.loads(result.output)


def test_check_quick_is_green_and_covers_all_ops():
    code, report = report_of("--quick")
    red = [c for c in report["cases"] if not c["passed"]]
    assert code == 0 and report["passed"], red
    from sublimate.fewbit.reference import FUNCTIONS

    for backend in ("reference", "cpu"):
        if _backends.reasons("fewbit", backend, "cpu", torch.float32):
            continue
        ops = {c["op"] for c in report["cases"] if c["backend"] == backend}
        assert set(FUNCTIONS) | {"swiglu", "geglu", "activation", "gelu, stochastic"} <= ops
    ran = {c["backend"] for c in report["cases"]}
    listed = {n["backend"] for n in report["not_run"]}
    assert ran | listed == set(_backends.NAMES) and not ran & listed
    assert all(n["reason"] for n in report["not_run"])


def needs_cpu_kernels():
    why = _native.CUDA.reason() if _native.CPU.reason() is None else _native.CPU.reason()
    if _native.CPU.reason() is not None:
        pytest.skip(f"needs the compiled CPU module: {why}")


def damage(monkeypatch, name, position, change):
    """Lets a native wrapper run and then changes one of its results."""
    true = getattr(_native.fewbit, name)

    def wrapped(*arguments):
        true(*arguments)
        change(arguments[position])

    monkeypatch.setattr(_native.fewbit, name, wrapped)


def first_bit(packed):
    packed.view(-1)[0] ^= 1


DAMAGES = {
    "gradient": ("bwd", 4, lambda dx: dx.mul_(1 + 2**-6)),
    "one gradient": ("bwd", 4, lambda dx: dx.view(-1)[-1].add_(0.5)),
    "forward": ("fwd", 2, lambda y: None if y is None else y.view(-1)[5].add_(0.5)),
    "one code": ("fwd", 3, first_bit),
    "gated gradient": ("gated_bwd", 9, lambda d: d.mul_(1 + 2**-6)),
    "NaN": ("bwd", 4, lambda dx: dx.view(-1)[7].fill_(float("nan"))),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_check_finds_planted_failure(monkeypatch, kind):
    needs_cpu_kernels()
    name, position, change = DAMAGES[kind]
    if name == "fwd":
        damage(monkeypatch, name, position, lambda t: None if t is None else change(flat(t)))
    else:
        damage(monkeypatch, name, position, lambda t: change(flat(t)))
    code, report = report_of("--quick", "--backend", "cpu")
    assert code == 1 and not report["passed"]
    red = {c["op"] for c in report["cases"] if not c["passed"]}
    assert ("swiglu" if "gated" in kind else "gelu") in red


def flat(t):
    """All elements of a dense tensor in memory order, as a view."""
    return t.as_strided((t.numel(),), (1,))


#: family -> (native function, op that calls it).
WRONG = {
    "kronecker_attention": ("attention", "exact attention"),
    "multicut": ("contract", "objective"),
    "path_integral": ("points", "path_points"),
    "randomized_linear": ("hadamard", "hadamard"),
}


@pytest.mark.parametrize("family", WRONG)
def test_check_sees_a_wrong_kernel_of_each_family(monkeypatch, family):
    """A kernel that computes with another input than it was given."""
    needs_cpu_kernels()
    name, op = WRONG[family]
    module = getattr(_native, family)
    true = getattr(module, name)
    (case,) = [
        c for c in check.plan((family,), ("cpu",), True)[0]
        if (c.op, c.dtype) == (op, torch.float32)
    ]  # fmt: skip
    assert check.run_case(case).passed
    calls = []

    def wrong(*arguments, **keywords):
        changed = list(arguments)
        at = next(
            k for k, a in enumerate(arguments) if torch.is_tensor(a) and a.is_floating_point()
        )
        changed[at] = 1.01 * arguments[at]
        calls.append(at)
        return true(*changed, **keywords)

    monkeypatch.setattr(module, name, wrong)
    outcome = check.run_case(case)
    assert calls and not outcome.passed


def test_check_reports_a_kernel_that_raises(monkeypatch):
    needs_cpu_kernels()

    def broken(*_):
        raise _native.NativeError("planted")

    monkeypatch.setattr(_native.fewbit, "gated_fwd", broken)
    code, report = report_of("--quick", "--backend", "cpu")
    red = [c for c in report["cases"] if not c["passed"]]
    assert code == 1
    assert {c["op"] for c in red} == {"swiglu", "geglu", "geglu, tanh"}
    assert all("planted" in c["error"] for c in red)


def test_check_table_names_the_failure(monkeypatch):
    needs_cpu_kernels()
    case = _parity.Case(
        "fewbit",
        "gelu",
        "cpu",
        "cpu",
        torch.float32,
        lambda: [_parity.Measurement("3 bits", "codes", 7.0, 0.0)],
    )
    monkeypatch.setattr(check, "plan", lambda *_: ([case], [("fewbit", "cuda", "no device")]))
    result = run("check")
    output = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "FAIL gelu on cpu, float32, 3 bits: codes 7" in output
    assert "not run fewbit on cuda: no device" in output


@pytest.mark.parametrize("wide", [True, False])
def test_check_table_is_not_folded(wide):
    """Long names and numbers in full, at the width of a file and of 80 columns."""
    cases = check.plan(check.FAMILIES, ("reference",), False)[0]
    longest = max((check._short_op(c) for c in cases), key=len)
    case = _parity.Case("fewbit", longest, "reference", "cpu", torch.bfloat16, list)
    found = [
        _parity.Measurement("3 bits", quantity, 1.2e-10, 3.4e-10, 5e-10, 6e-10)
        for quantity in ("forward", "gradient", "codes")
    ]
    console = Console(width=check._WIDTH if wide else 80, file=io.StringIO())
    console.print(check._table([check.Outcome(case, found)], wide))
    text = console.file.getvalue()
    assert "…" not in text
    assert all(
        part in text for part in (longest, "fewbit", "reference", "bfloat16", "pass", "verdict")
    )
    assert ("1.2e-10 / 3.4e-10" if wide else "1e-10  83%") in text


def test_check_of_an_unavailable_backend_fails_and_says_why(monkeypatch):
    monkeypatch.setattr(_native.CUDA, "_loaded", None)
    monkeypatch.setattr(_native.CUDA, "_reason", "planted reason")
    _backends.forget()
    code, report = report_of("--backend", "cuda")
    assert code == 1 and report["cases"] == []
    assert "planted reason" in report["not_run"][0]["reason"]


@pytest.mark.parametrize(
    "arguments", [("--backend", "metal"), ("--family", "nonesuch")], ids=["backend", "family"]
)
def test_check_refuses_unknown_names(arguments):
    result = run("check", *arguments)
    assert result.exit_code == 2
    assert arguments[1] in result.output


# ----------------------------------------------------------------------------------- comparing


def compared(got, eager, truth, backward=False):
    tensors = [torch.tensor(t, dtype=torch.float64) for t in (got, eager, truth)]
    return _parity.compare(
        "v", "q", tensors[0].float(), tensors[1].float(), tensors[2], backward=backward
    )


def test_compare_limits():
    eps = torch.finfo(torch.float32).eps
    truth = [1.0, 2.0, 4.0]
    # Exact eager: the limit is the floor of two units of the largest value.
    assert compared([1.0, 2.0, 4.0 * (1 + eps)], truth, truth).passed
    assert not compared([1.0, 2.0, 4.0 * (1 + 4 * eps)], truth, truth).passed
    # An eager that is wrong allows twice its error, or three times for a gradient, but the
    # relative RMS error has its own limit.
    wrong = [1.0, 2.0, 4.0 * (1 + 4 * eps)]
    ten = [1.0, 2.0, 4.0 * (1 + 12 * eps)]
    assert not compared(ten, wrong, truth).passed
    assert compared(ten, wrong, truth, backward=True).passed
    far = [1.0, 2.0, 4.1]
    assert not compared(far, far, truth).passed


def test_compare_not_finite():
    nan, inf = float("nan"), float("inf")
    assert compared([nan, inf, 1.0], [nan, inf, 1.0], [nan, inf, 1.0]).passed
    assert not compared([0.0, inf, 1.0], [nan, inf, 1.0], [nan, inf, 1.0]).passed
    assert not compared([nan, -inf, 1.0], [nan, inf, 1.0], [nan, inf, 1.0]).passed
    assert not compared([1.0, nan], [1.0, 2.0], [1.0, 2.0]).passed
    assert not compared([1.0], [1.0, 2.0], [1.0, 2.0]).passed


# --------------------------------------------------------------------------------------- bench


def test_bench_outside_a_checkout(monkeypatch):
    monkeypatch.setattr(bench, "checkout", lambda: None)
    result = run("bench")
    assert result.exit_code == 2
    assert "checkout" in result.output
