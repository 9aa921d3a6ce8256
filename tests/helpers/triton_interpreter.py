"""Runs a file of pytest cases in a process of its own with Triton's interpreter switched on.

``TRITON_INTERPRET`` is read when ``@triton.jit`` decorates, so it cannot be set for one test.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from helpers.processes import environment


def run_cases(cases: Path, report: Path, timeout: float = 300.0) -> dict[str, str]:
    """Outcome of each case in ``cases``: "passed", or what went wrong, by test name.

    Raises:
        AssertionError: the process collected nothing, crashed or ran out of time.
    """
    env = environment(TRITON_INTERPRET="1")
    command = [sys.executable, "-m", "pytest", str(cases), "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    tail = (process.stdout + process.stderr)[-4000:]
    assert process.returncode in (0, 1), f"pytest ended with {process.returncode}:\n{tail}"
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problems = [
            f"{child.tag}: {child.text or child.get('message')}"
            for child in case
            if child.tag in ("failure", "error", "skipped")
        ]
        outcomes[case.get("name", "?")] = "\n".join(problems) or "passed"
    assert outcomes, f"no case was collected from {cases}:\n{tail}"
    return outcomes


def check_cases(outcomes: dict[str, str], expected: int) -> None:
    """Every case passed (a skip counts as a failure), and there were at least ``expected``."""
    bad = {name: text for name, text in outcomes.items() if text != "passed"}
    listing = "\n\n".join(f"{name}\n{text}" for name, text in list(bad.items())[:8])
    assert not bad, f"{len(bad)} of {len(outcomes)} cases failed: {sorted(bad)}\n\n{listing}"
    assert len(outcomes) >= expected, f"{len(outcomes)} cases ran, expected {expected} or more"
