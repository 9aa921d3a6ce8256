"""Where a test body runs: a backend on a device, and the proof that it really ran there."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType

import pytest
import torch
from sublimate import _native


@dataclass(frozen=True)
class Lane:
    """A backend name and the device of the tensors it is given.

    "cuda-emulated" is the CUDA source run by the host on CPU tensors (fixture ``emulated_cuda``).
    """

    id: str
    backend: str
    device: str = "cpu"

    @property
    def emulated(self) -> bool:
        return self.backend == "cuda" and self.device == "cpu"

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """x on this lane's device, strides kept."""
        return x.to(self.device)


REFERENCE = Lane("reference", "reference")
CPU = Lane("cpu", "cpu")
CUDA_EMULATED = Lane("cuda-emulated", "cuda")
COMPILED = [CPU, CUDA_EMULATED]
#: On a machine with a GPU the same bodies run there too; elsewhere there is nothing to run.
GPU = [Lane("cuda-gpu", "cuda", "cuda"), Lane("triton-gpu", "triton", "cuda")]
GPU = GPU if torch.cuda.is_available() else []
KERNELS = [*COMPILED, *(pytest.param(lane, marks=pytest.mark.gpu) for lane in GPU)]
LANES = [REFERENCE, *KERNELS]


def lane_id(value: Lane) -> str:
    return value.id


@contextmanager
def counted_calls(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts kernel calls by backend while it is active: native modules and Triton wrappers."""
    counts: Counter[str] = Counter()
    call = _native.Library.call

    def counted(self: _native.Library, op: str, *arguments: object) -> None:
        counts["cpu" if self is _native.CPU else "cuda"] += 1
        counts[op] += 1
        call(self, op, *arguments)

    with patch.context() as inner:
        inner.setattr(_native.Library, "call", counted)
        for module, name, launcher in _triton_launchers() if GPU else ():
            inner.setattr(module, name, _counted(counts, launcher))
        yield counts


def _triton_launchers() -> Iterator[tuple[ModuleType, str, FunctionType]]:
    """(module, name, function) of every public host function of the families' Triton modules."""
    from sublimate import kernels

    for found in pkgutil.walk_packages(kernels.__path__, "sublimate.kernels."):
        if found.name.rpartition(".")[2] not in ("fwd", "bwd"):
            continue
        module = importlib.import_module(found.name)
        for name, value in list(vars(module).items()):
            local = isinstance(value, FunctionType) and value.__module__ == module.__name__
            if local and not name.startswith("_"):
                yield module, name, value


def _counted(counts: Counter[str], function):  # type: ignore[no-untyped-def]
    def counted(*arguments, **keywords):  # type: ignore[no-untyped-def]
        counts["triton"] += 1
        return function(*arguments, **keywords)

    return counted
