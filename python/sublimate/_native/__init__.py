"""The compiled modules, and the only code that turns tensors into addresses.

A module here per family wraps its kernels (``_native.fewbit.fwd``); this file is what they share.

``CPU`` and ``CUDA`` load lazily: the package imports without them, and the first use says what is
missing and why. Each wrapper checks device, dtype, layout and sizes of every tensor, keeps them
alive during the call, passes torch's thread count and current stream, and turns a status code into
an exception that names op and shape.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

#: Element types as csrc/common/dtype.h numbers them.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


#: Whether this process is a fork: its copy of the OpenMP runtime waits forever for threads that
#: stayed in the parent, so kernels use the calling thread alone.
_forked = False


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class NativeError(RuntimeError):
    """A compiled module is missing or broken, or one of its kernels reported a failure."""


class Library:
    """One compiled module, loaded on first use; a failure is remembered and explained.

    Args:
        module: dotted name, e.g. "sublimate._C".
        device: device type of the tensors its kernels take.
        file: load this file instead of searching for the name (the emulated CUDA module in tests).
    """

    def __init__(self, module: str, device: str, file: str | Path | None = None) -> None:
        self.module = module
        self.device = device
        self.file = None if file is None else Path(file)
        self._loaded: ModuleType | None = None
        self._reason: str | None = None

    def _import(self) -> ModuleType:
        if self.file is None:
            return importlib.import_module(self.module)
        spec = importlib.util.spec_from_file_location(self.module.rpartition(".")[2], self.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.file} is not an extension module")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    def reason(self) -> str | None:
        """None if the module loads, else why it does not and what to do."""
        if self._loaded is None and self._reason is None:
            try:
                self._loaded = self._import()
            except ModuleNotFoundError as error:
                if error.name != self.module:
                    self._reason = f"{self.module} failed to import: {error}"
                else:
                    self._reason = self._missing()
            except Exception as error:
                self._reason = (
                    f"{self.module} is installed but does not load: {error} "
                    f"(torch {torch.__version__}; reinstall sublimate, or build it on this machine)"
                )
        return self._reason

    def _missing(self) -> str:
        if self.module.endswith("_C_cuda"):
            return (
                f"{self.module} was not built (no nvcc at build time, or SUBLIMATE_BUILD_CUDA=0); "
                "install with SUBLIMATE_BUILD_CUDA=1 where nvcc is on the PATH"
            )
        return (
            f"{self.module} was not built (SUBLIMATE_SKIP_NATIVE=1, or a source tree that was not "
            "installed); run `pip install .`"
        )

    def load(self) -> ModuleType:
        """The module.

        Raises:
            NativeError: it is missing or broken; the message is ``reason()``.
        """
        if self._loaded is None:
            why = self.reason()
            if why is not None:
                raise NativeError(why)
        assert self._loaded is not None
        return self._loaded

    def call(self, op: str, shown: Tensor, *arguments: int | float) -> None:
        """Runs a kernel where ``shown`` lives; raises NativeError naming op and shape."""
        module = self.load()
        if self.device == "cuda":
            device = shown.device.index or 0
            stream = torch.cuda.current_stream(device).cuda_stream
        else:
            device, stream = 0, 0
        threads = 1 if _forked else torch.get_num_threads()
        status = getattr(module, op)(*arguments, device, stream, threads)
        if status != 0:
            raise NativeError(
                f"{self.module}.{op} failed on shape {tuple(shown.shape)}, {shown.dtype}: "
                f"{module.error_text(status)} (status {status})"
            )


CPU = Library("sublimate._C", "cpu")
CUDA = Library("sublimate._C_cuda", "cuda")


def library(backend: str) -> Library:
    """The library behind a backend name ("cpu" or "cuda")."""
    return CPU if backend == "cpu" else CUDA


@functools.cache
def driver_reason() -> str | None:
    if not torch.backends.cuda.is_built():
        return "this torch build has no CUDA support"
    return None if torch.cuda.is_available() else "torch finds no CUDA device or driver"


def cuda_reason() -> str | None:
    """Why no real or emulated CUDA kernel can run, or None."""
    why = CUDA.reason()
    if why is None and CUDA.device == "cuda":
        why = driver_reason()
    return why


# ------------------------------------------------------------------------------------- guards


def guard(
    op: str,
    argument: str,
    t: Tensor | None,
    device: str,
    dtypes: tuple[torch.dtype, ...],
    numel: int | None = None,
) -> int:
    """Address of a dense tensor that is what the kernel expects; 0 for None."""
    if t is None:
        return 0
    if t.device.type != device:
        raise NativeError(f"{op}: {argument} is on {t.device}, the kernel needs {device}")
    if t.dtype not in dtypes:
        raise NativeError(f"{op}: {argument} has {t.dtype}, the kernel needs {dtypes}")
    if numel is not None and t.numel() != numel:
        raise NativeError(f"{op}: {argument} has {t.numel()} elements, the kernel needs {numel}")
    if t.is_conj() or t.is_neg():
        raise NativeError(f"{op}: {argument} is a lazy conjugate or negative view")
    return t.data_ptr()


def dense(t: Tensor) -> bool:
    """Whether t covers its memory exactly once: strides of a permuted contiguous tensor."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(op: str, first: Tensor, *others: tuple[str, Tensor | None]) -> None:
    if not dense(first):
        raise NativeError(f"{op}: expected a dense tensor, got strides {first.stride()}")
    for argument, t in others:
        if t is None:
            continue
        if t.shape != first.shape:
            raise NativeError(f"{op}: {argument} has shape {t.shape}, expected {first.shape}")
        if t.stride() == first.stride():
            continue
        pairs = zip(t.stride(), first.stride(), first.shape, strict=True)
        if t.numel() > 0 and any(s != r for s, r, size in pairs if size > 1):
            raise NativeError(
                f"{op}: {argument} has strides {t.stride()}, expected {first.stride()}"
            )
