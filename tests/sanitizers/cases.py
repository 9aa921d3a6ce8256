"""Small calls of kernels against the reference: a script to run under sanitizers.

    python cases.py --emulated FILE     CUDA kernels as a host module, under ASan + UBSan or the
                                        race detector
    compute-sanitizer python cases.py   the real CUDA kernels, on a GPU
    python cases.py --native FILE       CPU kernels of families without CUDA, under ASan + UBSan

Sizes lie around words, warps and blocks, and views begin off every alignment: memory errors live
there. Prints the number of cases; any difference or error ends it. The cases of a family are the
calls that ``cases(device)`` of its module here yields.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import torch
from sublimate import _backends, _native

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, for helpers

#: Family -> module of its cases.
FAMILIES = {
    name: f"{name}_cases" for name in ("fewbit", "multicut", "path_integral", "randomized_linear")
}
NATIVE = {"kronecker_attention": "kronecker_cases"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", help="the emulated CUDA module; without it, a GPU is used")
    parser.add_argument("--native", help="the CPU module, built with sanitizers")
    parser.add_argument("--stride", type=int, default=1, help="run every STRIDEth case only")
    parser.add_argument("--family", choices=(*FAMILIES, *NATIVE), help="only the cases of this one")
    arguments = parser.parse_args()
    device = "cuda"
    if arguments.emulated:
        device = "cpu"
        name = "sublimate._C_cuda_emulated"
        _native.CUDA = _native.Library(name, device, file=arguments.emulated)
        _backends.forget()
    if arguments.native:
        device = "cpu"
        _native.CPU = _native.Library("sublimate._C", device, file=arguments.native)
        _backends.forget()
    done = 0
    for family, module in (NATIVE if arguments.native else FAMILIES).items():
        if arguments.family in (None, family):
            for i, check in enumerate(import_module(module).cases(device)):
                if i % arguments.stride == 0:
                    check()
                    done += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} cases agree")


if __name__ == "__main__":
    main()
