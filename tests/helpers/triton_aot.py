"""Compiles Triton kernels for GPUs that are not there, and reads what they take.

Compilation runs in processes of its own with an empty cache, so that nothing is reported which was
not compiled now. A family is named by its ``configs`` module, whose ``aot_cases()`` lists
``kernels.common.aot.Case``.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

#: Target -> bytes of shared memory (LDS) one block may use.
TARGETS = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}

#: Bytes that ptxas may park on the stack to stay on an occupancy step. It rounds registers to
#: eights and, a word or two above a step, prefers one more resident block; which kernel that hits
#: changes with every compiler (Triton 3.6, 3.7: 2 few-bit cases of 511 each, 8 bytes). A shortage
#: of registers looks different: dozens of bytes, or registers off the steps.
PARKED = 16


@dataclass(frozen=True)
class Report:
    """What one compiled kernel takes; ``error`` is the compiler's message, empty on success."""

    error: str = ""
    shared: int = 0
    registers: int = 0
    spilled: int = 0  # CUDA: bytes of stack and local memory; HIP: spilled vectors, or bytes


def _cuda_resources(cubin: bytes, folder: Path) -> tuple[int, int]:
    """(registers, bytes of stack and local memory), by the tool that Triton bundles."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / f"{os.getpid()}.cubin"
    path.write_bytes(cubin)
    output = subprocess.run(
        [str(tool), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    use = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output))
    return int(use["REG"]), int(use["STACK"]) + int(use["LOCAL"])


def _hip_resources(assembly: str) -> tuple[int, int]:
    """(vector registers, bytes of scratch memory or else spilled vectors), from the metadata.

    Spilled scalars are not counted: while there is a vector register left they go into its lanes
    (v_writelane_b32), which takes no memory; where none is left, into scratch memory, which counts.
    """
    use = {
        key: int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])  # type: ignore[index]
        for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    }
    return use["vgpr_count"], max(use["vgpr_spill_count"], use["private_segment_fixed_size"])


def _start(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ.pop("TRITON_INTERPRET", None)


def _compile(configs: str, index: int, target: str, cache: str) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = import_module(configs).aot_cases()[index]
    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target[3:]), 32)
    else:
        gpu = GPUTarget("hip", target, 64)
    source = ASTSource(
        fn=case.kernel,
        signature=case.full_signature(),
        constexprs=case.full_constexprs(),
        attrs=case.aligned(),
    )
    try:
        compiled = triton.compile(source, target=gpu, options=dict(case.options))
    except Exception as error:  # whatever the compiler raises is the finding
        return Report(error=f"{type(error).__name__}: {error}")
    if gpu.backend == "cuda":
        registers, spilled = _cuda_resources(compiled.asm["cubin"], Path(cache))
    else:
        registers, spilled = _hip_resources(compiled.asm["amdgcn"])
    return Report(shared=compiled.metadata.shared, registers=registers, spilled=spilled)


def compile_all(
    configs: str, wanted: list[tuple[str, str]], cache: Path
) -> dict[tuple[str, str], Report]:
    """Report of each wanted (case name, target) of the family whose configs module is named."""
    names = [case.name for case in import_module(configs).aot_cases()]
    assert len(set(names)) == len(names), f"{configs}: case names are not unique"
    position = {name: i for i, name in enumerate(names)}
    with ProcessPoolExecutor(
        max_workers=min(os.cpu_count() or 1, 8),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(str(cache),),
    ) as pool:
        futures = {
            (name, target): pool.submit(_compile, configs, position[name], target, str(cache))
            for name, target in wanted
        }
        return {key: future.result() for key, future in futures.items()}


def check(report: Report, target: str, more: int = 0) -> None:
    """Compiled, within the target's shared memory, at most 255 (HIP: 512) registers, no spill.

    more: bytes that a family allows where it says why.
    """
    cuda = target.startswith("sm_")
    assert not report.error, report.error
    assert report.shared <= TARGETS[target], f"{report.shared} bytes of shared memory"
    assert 0 < report.registers <= (255 if cuda else 512), f"{report.registers} registers"
    allowed = max(more, PARKED if cuda and report.registers % 8 == 0 else 0)
    assert report.spilled <= allowed, f"spills: {report}"


def check_parked(reports: Iterable[Report]) -> None:
    """Parking is the exception: at most one compiled kernel in fifty."""
    spilled = [report.spilled > 0 for report in reports]
    assert sum(spilled) <= len(spilled) / 50, f"{sum(spilled)} of {len(spilled)} spill"
