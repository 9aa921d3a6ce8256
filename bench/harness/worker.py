"""One process of a benchmark run: ``python -m bench.harness.worker``, started by ``launch``.

The allocator is fixed by glibc when a process starts, so each regime has its own:

* "cold": glibc as it comes. A large result is mapped afresh and unmapped when freed, so that every
  call pays a page fault per 4 KiB.
* "warm": nothing is mapped or given back, so that after the first round results reuse memory, as in
  a training loop whose allocator keeps its pools.
* "caching": on a GPU, torch's allocator, which always is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from .record import ROOT, Row

WARM = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def launch(
    allocator: str,
    family: tuple[str, ...],
    pattern: str,
    threads: int,
    rounds: int,
    quick: bool,
    providers: tuple[str, ...],
) -> Iterator[list[Row]]:
    """Starts a worker and yields the rows of each case as it ends.

    Raises:
        RuntimeError: the process ended before it had run every case; with the end of its errors.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env |= WARM if allocator == "warm" else {}
    env["OMP_NUM_THREADS"] = str(threads)
    # The child must find the same packages, whether installed or from a checkout.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    command = [sys.executable, "-m", "bench.harness.worker"]
    command += [f"--allocator={allocator}", f"--families={','.join(family)}", f"--case={pattern}"]
    command += [f"--threads={threads}", f"--rounds={rounds}", f"--providers={','.join(providers)}"]
    command += ["--quick"] if quick else []
    done = False
    # Libraries print to both streams; errors are shown only if the worker fails.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("bench-rows "):
                yield json.loads(line.removeprefix("bench-rows "))
            done |= line.startswith("bench-done")
        code = process.wait()
        if code or not done:
            errors.seek(0)
            tail = errors.read()[-3000:]
            raise RuntimeError(f"benchmark worker ({allocator}) ended with {code}:\n{tail}")


def main() -> None:
    """Runs the cases that the arguments name and prints their rows, one JSON line a case."""
    parser = argparse.ArgumentParser(prog="bench.harness.worker")
    parser.add_argument("--allocator", choices=("cold", "warm", "caching"), required=True)
    parser.add_argument("--families", required=True)
    parser.add_argument("--case", default="*")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--providers", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    import torch

    from . import runner

    torch.set_num_threads(options.threads)
    device = "cuda" if options.allocator == "caching" else "cpu"
    names = tuple(options.families.split(","))
    cases = [c for c in runner.collect(names, options.case, options.quick) if c.device == device]
    runner.run(
        cases,
        options.allocator,
        options.rounds,
        options.quick,
        tuple(p for p in options.providers.split(",") if p),
        lambda case, rows: print("bench-rows", json.dumps(rows), flush=True),
    )
    print("bench-done", flush=True)


if __name__ == "__main__":
    main()
