"""Every CPU kernel under ThreadSanitizer, its threads and several callers at once.

    python thread_cases.py FOLDER                 the calls of helpers/kernel_calls.py
    python thread_cases.py FOLDER --planted NAME  a race that must be reported, or "none"

FOLDER is a build with SUBLIMATE_SANITIZE=thread; the process runs under libtsan (LD_PRELOAD). A
call is repeated by three Python threads that start together; results must equal the first one's to
the last bit. Prints which kernels ran and how many parallel regions had several threads.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, for helpers

from helpers.processes import at_once

CALLERS = 3


def planted(file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location("_planted_races", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name == "between_calls":
        at_once(lambda i: module.between_calls(2_000_000), CALLERS)
    else:
        at_once(lambda i: getattr(module, name)(2), CALLERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--planted", choices=("in_region", "between_calls", "none"))
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if options.planted:
        planted(options.folder / f"_planted_races{suffix}", options.planted)
        return

    import torch
    from helpers.kernel_calls import CALLS, KERNELS
    from helpers.lanes import counted_calls
    from sublimate import _native

    torch.set_num_threads(2)
    file = options.folder / f"_C{suffix}"
    _native.CPU = _native.Library("sublimate._C", "cpu", file=file)
    regions = ctypes.c_long.in_dll(ctypes.CDLL(str(file)), "sublimate_parallel_regions")
    with pytest.MonkeyPatch.context() as patch, counted_calls(patch) as counts:
        alone = repeated(CALLS, regions, options.only)
    ran = set(KERNELS) & set(counts)
    missing = set(KERNELS) - ran
    assert options.only or not missing, f"never ran: {sorted(missing)}"
    print(f"{len(ran)} kernels, {regions.value} parallel regions; without one: {alone}")


def repeated(calls, regions, only):
    """Repeats every call by several threads; the names of those that had no parallel region."""
    import torch

    alone = []
    for name, kernel in calls.items():
        if not name.startswith(only):
            continue
        before = regions.value
        truth = kernel()
        if regions.value == before:
            alone.append(name)

        def again(i, kernel=kernel, truth=truth, name=name):
            for mine, its in zip(kernel(), truth, strict=True):
                assert torch.equal(mine, its), f"{name}: caller {i} got other bits"

        at_once(again, CALLERS)
        print(name, flush=True)
    return alone


if __name__ == "__main__":
    main()
