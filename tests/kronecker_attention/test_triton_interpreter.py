"""Triton kernels of Kronecker attention under Triton's interpreter (a process apart)."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import triton_interpreter

pytest.importorskip("triton", reason="pip install triton")


@pytest.mark.slow
def test_interpreter_parity(tmp_path):
    cases = Path(__file__).with_name("triton_interpreter_cases.py")
    outcomes = triton_interpreter.run_cases(cases, tmp_path / "report.xml")
    triton_interpreter.check_cases(outcomes, expected=63)
