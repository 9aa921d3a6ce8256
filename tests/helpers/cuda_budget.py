"""What nvcc's assembler says of every CUDA kernel, and the committed budget it is held to.

``python tests/helpers/cuda_budget.py`` (``make budget``) writes csrc/cuda_budget.json anew; look at
the difference before committing it: a register more may be a block less per multiprocessor.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: tests/ is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import native_build
from helpers.native_build import ROOT, SUFFIX

FILE = ROOT / "csrc" / "cuda_budget.json"
ARCHS = ("80", "90", "100")
#: Registers by which another nvcc release may differ from the one that the budget was written with.
OTHER_RELEASE = 8

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Use:
    """One kernel on one architecture: registers and spilled bytes per thread, shared bytes."""

    registers: int
    spilled: int
    shared: int


Uses = dict[str, dict[str, Use]]  # kernel -> architecture -> use


def readable(names: list[str]) -> dict[str, str]:
    """Mangled name -> kernel with its template arguments, e.g. "fewbit::forward_kernel<float>"."""
    shown = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {}
    for name, full in zip(names, shown, strict=True):
        text = full.removeprefix("void ").replace("(anonymous namespace)::", "")
        text = re.sub(r"\([^()]*\)$", "", text)  # parameters
        found[name] = text.replace("sublimate::", "").replace("::cuda::", "::")
    return found


def parse(log: str) -> Uses:
    """Uses of every entry function in the output of ``-Xptxas -v``."""
    chunks = log.split("ptxas info    : Compiling entry function")[1:]
    read = []
    for chunk in chunks:
        entry = ENTRY.search("Compiling entry function" + chunk)
        spills, used, shared = SPILLS.search(chunk), USED.search(chunk), SHARED.search(chunk)
        if not (entry and spills and used):
            raise ValueError(f"ptxas says something new:\n{chunk[:600]}")
        use = Use(int(used[1]), int(spills[2]) + int(spills[3]), int(shared[1]) if shared else 0)
        read.append((entry[1], entry[2], use))
    names = readable([name for name, _, _ in read])
    uses: Uses = {}
    for name, arch, use in read:
        uses.setdefault(names[name], {})[arch] = use
    return uses


def release() -> str:
    """nvcc's release, e.g. "13.0"."""
    nvcc = native_build.nvcc()
    assert nvcc is not None
    match = re.search(r"release (\d+\.\d+)", native_build.run([nvcc, "--version"]))
    assert match is not None
    return match[1]


def _digest() -> str:
    parts = hashlib.sha256(release().encode())
    for path in sorted([ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*")]):
        if path.suffix in (".cu", ".cuh", ".h", ".txt"):
            parts.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return parts.hexdigest()


def build() -> tuple[Path, str]:
    """The CUDA module for ``ARCHS`` and all that the compiler said, built once per content."""
    nvcc = native_build.nvcc()
    with native_build.locked("cuda") as folder:
        module, log = folder / f"_C_cuda{SUFFIX}", folder / f"ptxas-{_digest()[:16]}.log"
        if not (log.exists() and module.exists()):
            archs = ";".join(ARCHS)
            native_build.configure(
                folder,
                "-DSUBLIMATE_CUDA=ON",
                f"-DCMAKE_CUDA_COMPILER={nvcc}",
                f"-DSUBLIMATE_CUDA_ARCHS={archs}",
            )
            # From nothing: the assembler speaks only of what it compiles now.
            output = native_build.build(folder, "_C_cuda", clean=True)
            for old in folder.glob("ptxas-*.log"):
                old.unlink()
            log.write_text(output)
        return module, log.read_text()


def breaches(uses: Uses, budget: Mapping[str, object], with_release: str) -> list[str]:
    """Where kernels take more than the budget, or budget and kernels do not match; in words."""
    kernels = budget["kernels"]
    assert isinstance(kernels, dict)
    slack = 0 if budget["nvcc"] == with_release else OTHER_RELEASE
    found = []
    for name in sorted(set(uses) | set(kernels)):
        if name not in kernels:
            found.append(f"{name}: not in {FILE.name}; run `make budget`")
        elif name not in uses:
            found.append(f"{name}: in {FILE.name} but not compiled; run `make budget`")
        else:
            for arch in sorted(set(uses[name]) | set(kernels[name])):
                if arch not in kernels[name] or arch not in uses[name]:
                    found.append(f"{name}: {arch} in only one of budget and build")
                    continue
                use, allowed = uses[name][arch], kernels[name][arch]
                if use.registers > allowed["registers"] + slack:
                    found.append(
                        f"{name} {arch}: {use.registers} registers, {allowed['registers']} budgeted"
                    )
                if use.shared > allowed["shared"]:
                    found.append(
                        f"{name} {arch}: {use.shared} B shared, {allowed['shared']} budgeted"
                    )
    for name, by_arch in uses.items():
        found += [f"{name} {a}: spills {u.spilled} bytes" for a, u in by_arch.items() if u.spilled]
    return found


def write() -> None:
    if native_build.nvcc() is None or shutil.which("c++filt") is None:
        sys.exit("needs nvcc and c++filt on PATH")
    uses = parse(build()[1])
    spilling = [n for n, by_arch in uses.items() if any(u.spilled for u in by_arch.values())]
    if spilling:
        sys.exit(f"a budget holds no spills: {', '.join(spilling)}")
    kernels = {
        name: {
            arch: {k: v for k, v in asdict(use).items() if k != "spilled"}
            for arch, use in archs.items()
        }
        for name, archs in sorted(uses.items())
    }
    # One line per kernel and architecture, so that a difference reads well.
    text = json.dumps({"nvcc": release(), "kernels": kernels}, indent=1)
    text = re.sub(r"\{\s+(\"registers\": \d+),\s+(\"shared\": \d+)\s+\}", r"{\1, \2}", text)
    FILE.write_text(text + "\n")
    print(f"{FILE}: {len(kernels)} kernels, nvcc {release()}")


if __name__ == "__main__":
    write()
