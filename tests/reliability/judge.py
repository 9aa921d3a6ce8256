"""Whether a call went as every call must: refused with the right exception, or answered rightly."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sublimate
import torch
from helpers.lanes import counted_calls
from reliability.table import Arguments, Entry
from sublimate.path_integral.chunks import NO_PATH
from torch import Tensor

REFUSALS = (TypeError, ValueError, NotImplementedError)
HERE = str(Path(__file__).parent)
PACKAGE = str(Path(sublimate.__file__).parent)
#: Rounding of the dtype times what sums and derivatives of this size lose; exactness and tighter
#: bounds are the families' own tests.
TOLERANCE = {
    torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1,
    torch.complex64: 2e-4,
}  # fmt: skip
TAME = 100.0


class Fault(AssertionError):
    """A call did what no call may do; ``place`` says where, for telling faults apart."""

    def __init__(self, entry: Entry, what: str, place: str, arguments: Arguments) -> None:
        self.entry, self.what, self.place = entry, what, place
        shown = ", ".join(f"{k}={describe(v)}" for k, v in arguments.items())
        super().__init__(f"{entry.name}: {what} at {place}\n  {shown}")


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested:
            return f"<{value.layout} {value.dtype}>"
        return f"<{value.dtype} {tuple(value.shape)} strides {value.stride()} {value.device}>"
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)[:80]


def _place(error: BaseException) -> tuple[str, bool]:
    """Last line of ours that an error passed, and whether it came from the caller's model."""
    last, inside = "", False
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.name == "__torch_function__":  # ours between the caller's model and torch
            continue
        if frame.filename.startswith(PACKAGE):
            last, inside = f"{frame.filename.removeprefix(PACKAGE)}:{frame.lineno}", False
        elif last and (
            frame.name == "_call_impl"
            or (frame.filename.startswith(HERE) and frame.name in ("forward", "scores", "<lambda>"))
        ):
            inside = True
    return last, inside


def judge(entry: Entry, arguments: Arguments) -> str:
    """ "answered" or "refused".

    Raises:
        Fault: another exception, a kernel that ran before a refusal, or a wrong answer.
    """
    torch.manual_seed(0)
    try:
        with pytest.MonkeyPatch.context() as patch, counted_calls(patch) as launched:
            result = entry.call(**arguments)
    except REFUSALS as error:
        if entry.early and launched:
            raise Fault(
                entry, f"a kernel ran before {error!r}", _place(error)[0], arguments
            ) from error
        return "refused"
    except sublimate.BackendUnavailable as error:
        if arguments.get("backend") is None and "made" not in arguments:
            raise Fault(entry, repr(error), _place(error)[0], arguments) from error
        return "refused"
    except Exception as error:
        place, inside = _place(error)
        if inside or (isinstance(error, RuntimeError) and NO_PATH in str(error)):
            return "refused"
        raise Fault(
            entry, f"{type(error).__name__}: {str(error)[:300]}", place, arguments
        ) from error
    grads = _gradients(entry, arguments, result)
    if entry.compared and arguments.get("backend") != "reference" and "backend" in entry.names:
        _compare(entry, arguments, result, grads)
    return "answered"


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of a result in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors(getattr(value, f.name, None))


def _ordinary(t: Tensor) -> bool:
    return t.layout == torch.strided and not t.is_nested and t.device.type == "cpu"


def _gradients(entry: Entry, arguments: Arguments, result: Any) -> list[Tensor | None]:
    """Of all floating results in all arguments that ask for one, from an expanded gradient."""
    leaves = [t for t in tensors(arguments) if t.requires_grad]
    outputs = [t for t in tensors(result) if t.requires_grad and _ordinary(t)]
    if not leaves or not outputs:
        return []
    upstream = [torch.full_like(t[:0].sum(), 0.5).expand(t.shape) if t.dim() else
                torch.full_like(t, 0.5) for t in outputs]  # fmt: skip
    try:
        return list(
            torch.autograd.grad(outputs, leaves, upstream, allow_unused=True, retain_graph=True)
        )
    except Exception as error:
        place, inside = _place(error)
        if inside or isinstance(error, REFUSALS):
            return []
        what = f"backward: {type(error).__name__}: {str(error)[:300]}"
        raise Fault(entry, what, place, arguments) from error


def _whole(arguments: Arguments) -> bool:
    """Whether sums of products are exact, and so are labels and places."""
    given = [t.detach() for t in tensors(arguments) if _ordinary(t) and t.dtype in TOLERANCE]
    return all(torch.equal(t, t.round()) for t in given if not t.is_complex())


def _tame(arguments: Arguments) -> bool:
    """Whether rounding alone can part two backends: finite and of ordinary size."""
    for t in tensors(arguments):
        if not _ordinary(t) or t.dtype not in TOLERANCE:
            continue
        if t.numel() and not bool((t.detach().abs() < TAME).all()):
            return False
    numbers = [v for v in arguments.values() if isinstance(v, (int, float))]
    return all(abs(v) < TAME or isinstance(v, int) for v in numbers)


def _compare(entry: Entry, arguments: Arguments, result: Any, grads: list[Tensor | None]) -> None:
    arguments = {**arguments, "backend": "reference"}
    torch.manual_seed(0)
    try:
        truth = entry.call(**arguments)
        true_grads = _gradients(entry, arguments, truth)
    except Exception as error:
        what = f"the reference refuses what the backend answers: {error!r}"
        raise Fault(entry, what, _place(error)[0], arguments) from error
    values = tame = _tame(arguments)
    mine, its = [*tensors(result)], [*tensors(truth)]
    mine += [g for g in grads if g is not None]
    its += [g for g in true_grads if g is not None]
    if len(mine) != len(its):
        raise Fault(entry, f"{len(mine)} results, the reference {len(its)}", "", arguments)
    for a, b in zip(mine, its, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Fault(entry, f"{describe(a)}, the reference {describe(b)}", "", arguments)
        if values and tame and _ordinary(a):
            _agree(entry, arguments, a.detach(), b.detach())


def _agree(entry: Entry, arguments: Arguments, a: Tensor, b: Tensor) -> None:
    if a.dtype not in TOLERANCE:
        # Numbers that are not whole may be so near to one another that rounding orders them.
        if _whole(arguments) and not torch.equal(a, b):
            raise Fault(
                entry, f"{a.tolist()}, the reference {b.tolist()}"[:600], "values", arguments
            )
        return
    if not torch.equal(a.isfinite(), b.isfinite()):
        raise Fault(entry, f"{a.tolist()}, the reference {b.tolist()}"[:600], "finite", arguments)
    wide = torch.complex128 if a.is_complex() else torch.float64
    fine = a.isfinite()
    x, y = a.to(wide)[fine], b.to(wide)[fine]
    if not x.numel():
        return
    size = max(1.0, float(y.abs().max()))
    worst = float((x - y).abs().max()) / size
    # Gradients and results of 16-bit inputs may come in float32.
    narrow = [TOLERANCE[t.dtype] for t in tensors(arguments) if t.dtype in TOLERANCE]
    if not worst <= max(narrow, default=0.0) + TOLERANCE[a.dtype]:
        what = f"differs from the reference by {worst:.2g} of {size:.2g}"
        raise Fault(entry, what, "values", arguments)
