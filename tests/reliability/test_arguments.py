"""Every public function with arguments of every kind: refused rightly, or answered rightly.

A short run, the same every time, of the campaign in ``fuzz.py``.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability.judge import judge
from reliability.table import entries, public_names, strategy

#: Examples of each entry; some of path_integral's take tens of milliseconds.
EXAMPLES = {"path_integral": 12, "fewbit": 16, "multicut": 20}


def test_the_table_is_complete():
    """A new public name needs an entry; an entry for a name that is gone is an error too."""
    covered = {".".join(name.split(".")[:2]) for name in entries()}
    # A result of which a method takes arguments has an entry of its own, beyond the public names.
    assert public_names() <= covered, sorted(public_names() - covered)


# Absurd parameters overflow in a fit, strange tensors are deprecated or experimental.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(entries()))
def test_any_arguments(name):
    found = entries()[name]

    @settings(
        max_examples=EXAMPLES.get(name.split(".")[0], 24), derandomize=True, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy(found))
    def run(arguments):
        judge(found, arguments)

    run()


def test_the_judge_sees_faults():
    """Another exception, a kernel before a refusal and a wrong answer are told from right ones."""
    from dataclasses import replace

    import torch
    from reliability.judge import Fault
    from sublimate import fewbit

    x = torch.tensor([1.5, -0.5])
    good = entries()["fewbit.gelu"]
    assert judge(good, {"x": x, "backend": "cpu"}) == "answered"
    assert judge(good, {"x": [1.5]}) == "refused"

    def broken(x, backend=None):
        y = fewbit.gelu(x, backend="cpu")
        if backend == "cpu":
            raise IndexError("planted")
        if backend == "cuda":
            raise ValueError("planted, too late")
        return y if backend == "reference" else y + 0.01

    bad = replace(good, call=broken)
    for backend, said in (("cpu", "IndexError"), ("cuda", "kernel ran"), ("auto", "differs")):
        with pytest.raises(Fault, match=said):
            judge(bad, {"x": x, "backend": backend})


def test_bytes_become_calls():
    """The fuzzer's entrance: Hypothesis turns bytes into a call of the table."""
    seen = []

    @settings(database=None, deadline=None)
    @given(strategy(entries()["fewbit.gelu"]), st.none())
    def run(arguments, nothing):
        seen.append(arguments)

    run.hypothesis.fuzz_one_input(bytes(range(256)) * 8)
    assert seen and "x" in seen[0]
