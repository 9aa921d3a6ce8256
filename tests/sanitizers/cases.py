"""Small calls of every CUDA kernel against the reference: a script to run under sanitizers.

    python cases.py --emulated FILE     the host module, under ASan + UBSan or the race detector
    compute-sanitizer python cases.py   the real kernels, on a GPU

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

FAMILIES = ("fewbit", "multicut", "randomized_linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", help="the emulated CUDA module; without it, a GPU is used")
    parser.add_argument("--stride", type=int, default=1, help="run every STRIDEth case only")
    parser.add_argument("--family", choices=FAMILIES, help="only the cases of this one")
    arguments = parser.parse_args()
    device = "cuda"
    if arguments.emulated:
        device = "cpu"
        name = "sublimate._C_cuda_emulated"
        _native.CUDA = _native.Library(name, device, file=arguments.emulated)
        _backends.forget()
    done = 0
    for family in FAMILIES:
        if arguments.family in (None, family):
            for i, check in enumerate(import_module(f"{family}_cases").cases(device)):
                if i % arguments.stride == 0:
                    check()
                    done += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} cases agree")


if __name__ == "__main__":
    main()
