"""Which implementation runs: one record per (family, backend), and how a name is chosen.

Precedence: ``backend=`` argument, ``with use_backend(...)``, ``set_backend``, the environment
variable ``SUBLIMATE_BACKEND`` (read at import), else "auto". A backend that was named and cannot
run raises with every reason; "auto" falls through and says why at DEBUG level, once per case.

The setting is one module attribute per process, not a ContextVar: torch.compile guards an attribute
and recompiles when it changes, and cannot trace a ContextVar. It is read in the public functions
only; forward passes the resolved name to backward as a string.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch

from . import _native

logger = logging.getLogger("sublimate")

NAMES = ("reference", "cpu", "triton", "cuda")
#: Order in which "auto" tries, by device type of the inputs.
AUTO = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run; the message lists every reason."""


@dataclass(frozen=True)
class Backend:
    """One family's implementation on one backend.

    Attributes:
        family: folder name of the family.
        name: one of ``NAMES``.
        available: () -> None if it can run on this machine, else the reason.
        supports: (device type, dtype) -> reasons why these inputs cannot run, empty if they can.
    """

    family: str
    name: str
    available: Callable[[], str | None]
    supports: Callable[[str, torch.dtype], list[str]]


_registry: dict[tuple[str, str], Backend] = {}


def register(backend: Backend) -> None:
    _registry[backend.family, backend.name] = backend
    forget()


def triton_reason() -> str | None:
    """Why no Triton kernel can run on this machine, or None."""
    try:
        import triton
    except ImportError as error:
        return f"triton is not installed ({error}); pip install triton"
    return None if triton.knobs.runtime.interpret else _native.driver_reason()


def _triton_device() -> str:
    """Device type of the tensors Triton takes: its interpreter without a driver takes the CPU's."""
    return "cpu" if triton_reason() is None and _native.driver_reason() is not None else "cuda"


def register_family(family: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Records of a family that has all four backends, each for every dtype in ``dtypes``."""

    def on(wanted: Callable[[], str]) -> Callable[[str, torch.dtype], list[str]]:
        def supports(device: str, dtype: torch.dtype) -> list[str]:
            found = [] if device == wanted() else [f"needs tensors on {wanted()}, got {device}"]
            if dtype not in dtypes:
                found.append(f"no kernel for {dtype}")
            return found

        return supports

    # Looked up when asked: tests put other libraries in place.
    register(Backend(family, "reference", lambda: None, lambda device, dtype: []))
    register(Backend(family, "cpu", lambda: _native.CPU.reason(), on(lambda: "cpu")))
    register(Backend(family, "triton", triton_reason, on(_triton_device)))
    cuda = on(lambda: _native.CUDA.device)
    register(Backend(family, "cuda", lambda: _native.cuda_reason(), cuda))


def registered(family: str) -> dict[str, Backend]:
    return {name: b for (f, name), b in _registry.items() if f == family}


def families() -> list[str]:
    return sorted({family for family, _ in _registry})


def _validated(name: str, source: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{source}: expected a backend name, got {type(name).__name__}")
    if name != "auto" and name not in NAMES:
        raise ValueError(f"{source}: expected one of {('auto', *NAMES)}, got {name!r}")
    return name


_requested: str = _validated(os.environ.get("SUBLIMATE_BACKEND") or "auto", "SUBLIMATE_BACKEND")


def get_backend() -> str:
    """The process-wide setting: "auto" or a backend name."""
    return _requested


def set_backend(name: str) -> None:
    """Sets the backend of every op of this process that is not given ``backend=``.

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        TypeError, ValueError: not a backend name.
    """
    global _requested
    _requested = _validated(name, "set_backend")


class use_backend:
    """Context manager form of ``set_backend``; restores the previous setting on exit."""

    def __init__(self, name: str) -> None:
        self.name = _validated(name, "use_backend")

    def __enter__(self) -> use_backend:
        self.previous = _requested
        set_backend(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        set_backend(self.previous)


def reasons(family: str, name: str, device: str, dtype: torch.dtype) -> list[str]:
    """Why this backend cannot run these inputs; empty if it can."""
    record = _registry.get((family, name))
    if record is None:
        return [f"{family} has no {name} implementation"]
    unavailable = record.available()
    found = [] if unavailable is None else [unavailable]
    return found + record.supports(device, dtype)


@functools.cache
def _choose(family: str, requested: str, device: str, dtype: torch.dtype) -> str:
    if requested == "auto":
        for name in AUTO.get(device, ("reference",)):
            why = reasons(family, name, device, dtype)
            if not why:
                return name
            logger.debug("%s: auto passes over %s: %s", family, name, "; ".join(why))
        return "reference"
    why = reasons(family, requested, device, dtype)
    if not why:
        return requested
    working = [n for n in NAMES if not reasons(family, n, device, dtype)]
    raise BackendUnavailable(
        f"backend {requested!r} of sublimate.{family} cannot run this call "
        f"({dtype} on {device}): {'; '.join(why)}. "
        f"Would work: {', '.join(working) or 'none'}; see `python -m sublimate info`."
    )


@torch.compiler.assume_constant_result
def _constant_choice(family: str, requested: str, device: str, dtype: torch.dtype) -> str:
    """``_choose`` for Dynamo: run once while tracing, not traced. Its arguments are guarded."""
    return _choose(family, requested, device, dtype)


def forget() -> None:
    """Drops remembered choices; needed only when what is installed changes within a process."""
    _choose.cache_clear()


def resolve(family: str, backend: str | None, x: torch.Tensor) -> str:
    """Name of the backend that runs an op of ``family`` on ``x``.

    Raises:
        TypeError, ValueError: ``backend`` is not a name.
        BackendUnavailable: the backend was named, here or by a setting, and cannot run.
    """
    requested = _requested if backend is None else _validated(backend, "backend")
    return _constant_choice(family, requested, x.device.type, x.dtype)
