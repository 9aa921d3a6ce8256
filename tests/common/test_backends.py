"""Which backend runs: precedence, refusal of what cannot run, and what is remembered."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
import sublimate
import torch
from helpers.lanes import counted_calls
from helpers.processes import environment
from sublimate import _backends, _native, fewbit

X = torch.linspace(-3, 3, 100)


@pytest.fixture
def calls(monkeypatch):
    with counted_calls(monkeypatch) as counts:
        yield counts


def ran(calls, f):
    """Name of the backend behind one call: "cpu", "cuda" or "reference"."""
    calls.clear()
    f()
    return next((name for name in ("cpu", "cuda", "triton") if calls[name]), "reference")


def test_precedence_in_one_process(calls):
    """argument > with > set_backend > auto."""
    try:
        assert ran(calls, lambda: fewbit.gelu(X)) == "cpu"
        sublimate.set_backend("reference")
        assert sublimate.get_backend() == "reference"
        assert ran(calls, lambda: fewbit.gelu(X)) == "reference"
        assert ran(calls, lambda: fewbit.gelu(X, backend="cpu")) == "cpu"
        with sublimate.use_backend("cpu"):
            assert ran(calls, lambda: fewbit.gelu(X)) == "cpu"
            assert ran(calls, lambda: fewbit.gelu(X, backend="reference")) == "reference"
            assert ran(calls, lambda: fewbit.ReLU(backend="reference")(X)) == "reference"
            with sublimate.use_backend("auto"):
                assert ran(calls, lambda: fewbit.gelu(X)) == "cpu"
            assert sublimate.get_backend() == "cpu"
        assert ran(calls, lambda: fewbit.gelu(X)) == "reference"
        assert ran(calls, lambda: fewbit.gelu(X, backend="auto")) == "cpu"
    finally:
        sublimate.set_backend("auto")


SCRIPT = """
import torch, sublimate
from sublimate import _native, fewbit
x = torch.ones(4)
count = []
call = _native.Library.call
_native.Library.call = lambda self, *a: (count.append(self.module), call(self, *a))
def ran(f):
    count.clear(); f(); return "cpu" if count else "reference"
print(sublimate.get_backend(), ran(lambda: fewbit.gelu(x)), end=" ")
print(ran(lambda: fewbit.gelu(x, backend="cpu")), end=" ")
with sublimate.use_backend("cpu"):
    print(ran(lambda: fewbit.gelu(x)), end=" ")
sublimate.set_backend("auto")
print(ran(lambda: fewbit.gelu(x)))
"""


def test_environment_variable():
    """Weaker than every other way; read once, at import."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(SUBLIMATE_BACKEND="reference"),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["reference", "reference", "cpu", "cpu", "cpu"], done.stderr


def test_bad_environment_variable():
    done = subprocess.run(
        [sys.executable, "-c", "import sublimate"],
        env=environment(SUBLIMATE_BACKEND="gpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert (
        "ValueError: SUBLIMATE_BACKEND: expected one of" in done.stderr and "'gpu'" in done.stderr
    )


@pytest.mark.parametrize("call", [sublimate.set_backend, sublimate.use_backend])
def test_bad_names(call):
    before = sublimate.get_backend()
    with pytest.raises(ValueError, match=f"{call.__name__}: expected one of .*, got 'gpu'"):
        call("gpu")
    with pytest.raises(TypeError, match=f"{call.__name__}: expected a backend name, got int"):
        call(3)
    assert sublimate.get_backend() == before


def test_state_is_restored_after_an_exception():
    with (
        pytest.raises(ZeroDivisionError),
        sublimate.use_backend("cpu"),
        sublimate.use_backend("reference"),
    ):
        raise ZeroDivisionError
    assert sublimate.get_backend() == "auto"
    context = sublimate.use_backend("cpu")
    for _ in range(2):  # the same object again
        with context:
            assert sublimate.get_backend() == "cpu"
        assert sublimate.get_backend() == "auto"


def test_backward_uses_the_backend_of_the_forward(calls):
    leaf = X.clone().requires_grad_()
    for first, then in (("cpu", "reference"), ("reference", "cpu")):
        with sublimate.use_backend(first):
            y = fewbit.gelu(leaf)
            z = fewbit.swiglu(leaf, leaf * 2)
        with sublimate.use_backend(then):
            found = ran(calls, lambda: (y.sum() + z.sum()).backward())  # noqa: B023
        assert found == first
        assert leaf.grad.count_nonzero() > 90
        leaf.grad = None


def test_backward_in_another_thread(calls):
    """A thread that never saw the setting runs the forward's backend."""
    leaf = X.clone().requires_grad_()
    with sublimate.use_backend("cpu"):
        y = fewbit.gelu(leaf).sum()
    thread = threading.Thread(target=y.backward)
    thread.start()
    thread.join()
    assert calls["fewbit_bwd"] == 1 and leaf.grad is not None


# ------------------------------------------------------------------- a family made for these tests


@pytest.fixture
def family(monkeypatch):
    """Registers backends of a family "made": name -> (reason it is off, reasons against inputs)."""
    registry = dict(_backends._registry)
    monkeypatch.setattr(_backends, "_registry", registry)

    def register(**backends):
        for name, (off, against) in backends.items():
            _backends.register(
                _backends.Backend(
                    "made", name, lambda off=off: off, lambda d, t, a=against: list(a)
                )
            )

    yield register
    _backends.forget()


def test_named_backend_gives_every_reason(family):
    family(
        reference=(None, []),
        cpu=("it was not built", ["no kernel for halves", "only on Sundays"]),
        cuda=(None, []),
    )
    with pytest.raises(sublimate.BackendUnavailable) as info:
        _backends.resolve("made", "cpu", X)
    message = str(info.value)
    for part in (
        "backend 'cpu' of sublimate.made cannot run this call (torch.float32 on cpu): ",
        "it was not built; no kernel for halves; only on Sundays.",
        "Would work: reference, cuda; see `python -m sublimate info`.",
    ):
        assert part in message
    with pytest.raises(sublimate.BackendUnavailable, match="made has no triton implementation"):
        _backends.resolve("made", "triton", X)


def test_nothing_would_work(family):
    family(cpu=("broken", []))
    with pytest.raises(sublimate.BackendUnavailable, match=r"broken.*Would work: none"):
        _backends.resolve("made", "cpu", X)


def test_auto_falls_through_and_says_why_once(family, caplog):
    family(reference=(None, []), cpu=(None, ["no kernel for this"]))
    with caplog.at_level(logging.DEBUG, logger="sublimate"):
        assert [_backends.resolve("made", None, X) for _ in range(3)] == ["reference"] * 3
    said = [r for r in caplog.records if r.name == "sublimate"]
    assert [r.getMessage() for r in said] == ["made: auto passes over cpu: no kernel for this"]
    assert said[0].levelno == logging.DEBUG
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="sublimate"):
        _backends.resolve("made", None, X.double())  # another case: said once again
    assert len([r for r in caplog.records if r.name == "sublimate"]) == 1


def test_auto_takes_the_first_that_can(family):
    family(reference=(None, []), cpu=(None, []))
    assert _backends.resolve("made", None, X) == "cpu"
    assert _backends.resolve("made", "auto", X) == "cpu"
    assert _backends.resolve("made", None, torch.empty(1, device="meta")) == "reference"


def test_forget(family):
    """What was chosen is remembered until forgotten, when an installation changes."""
    family(reference=(None, []), cpu=("not yet", []))
    assert _backends.resolve("made", None, X) == "reference"
    family(cpu=(None, []))
    assert _backends.resolve("made", None, X) == "cpu"


def test_missing_native_part(monkeypatch, calls, caplog):
    """Without _C the package works through the reference, and naming cpu says what to do."""
    missing = _native.Library("sublimate._C_absent", "cpu")
    monkeypatch.setattr(_native, "CPU", missing)
    _backends.forget()
    try:
        with caplog.at_level(logging.DEBUG, logger="sublimate"):
            y = fewbit.gelu(X)
        assert not calls and torch.equal(y, torch.nn.functional.gelu(X))
        assert "auto passes over cpu: sublimate._C_absent was not built" in caplog.text
        with pytest.raises(sublimate.BackendUnavailable, match=r"was not built .*pip install"):
            fewbit.gelu(X, backend="cpu")
        assert "was not built" in sublimate.backends()["fewbit"]["cpu"]
    finally:
        monkeypatch.undo()
        _backends.forget()
    assert sublimate.backends()["fewbit"]["cpu"] is None


def test_table_of_backends():
    table = sublimate.backends()["fewbit"]
    assert set(table) == {"reference", "cpu", "triton", "cuda"}
    assert table["reference"] is None and table["cpu"] is None
    if not torch.cuda.is_available():
        assert table["triton"] and table["cuda"]
