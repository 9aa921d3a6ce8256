"""Small calls of every CUDA kernel (tests/sanitizers/cases.py), emulated, in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.native_build import ROOT

CASES = ROOT / "tests" / "sanitizers" / "cases.py"


def run_cases(module: Path, *arguments: str, **variables: str) -> int:
    """Number of cases that agreed; fails with what the sanitizer said."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    done = subprocess.run(
        [sys.executable, str(CASES), "--emulated", str(module), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    agreed = re.search(r"^(\d+) cases agree$", done.stdout, re.MULTILINE)
    assert agreed, done.stdout
    return int(agreed[1])
