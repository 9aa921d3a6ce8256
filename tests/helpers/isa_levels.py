"""One process for each instruction-set level of the CPU module: it is picked once, at load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.processes import environment

LEVELS = ("base", "v3", "v4")


def run(worker: str, folder: Path) -> dict[str, tuple[str, dict[Any, Any]]]:
    """(level in use, results) by the level asked for, of ``python -m helpers.<worker> OUTPUT``."""
    found = {}
    for level in LEVELS:
        env = environment(SUBLIMATE_CPU_ISA=level)
        command = [sys.executable, "-m", f"helpers.{worker}", str(folder / level)]
        process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert process.returncode == 0, f"{level}: {process.stderr[-3000:]}"
        saved = torch.load(folder / level, weights_only=False)
        found[level] = saved["isa"], saved["results"]
    return found
