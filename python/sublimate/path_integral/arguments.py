"""Inputs, baselines and targets of an attribution: checked, and flattened to rows of numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import dense, fail_kind, fail_type, readable
from .._dtypes import accumulator
from .._modes import ordinary_tensors

Forward = Callable[..., Any]


class ArgumentError(ValueError, AssertionError):
    """A value that cannot be used; an AssertionError too, because Captum asserts."""


def fail_value(argument: str, expected: str, got: Any) -> ArgumentError:
    return ArgumentError(f"{argument}: expected {expected}, got {got}")


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True)
class Space:
    """How one input tensor is laid out as rows: a complex number is two real ones.

    Attributes:
        shape: of one sample.
        dtype: of the tensor the user gave.
        points: real dtype in which points are written.
        acc: float64 for float64 and complex128, else float32.
    """

    shape: torch.Size
    dtype: torch.dtype
    points: torch.dtype
    acc: torch.dtype

    @property
    def complex(self) -> bool:
        return self.dtype in _COMPLEX

    @property
    def size(self) -> int:
        """Real numbers in a sample, E."""
        return self.shape.numel() * (2 if self.complex else 1)

    def flat(self, x: Tensor) -> Tensor:
        """[R, *shape] -> [R, E] in the accumulator's dtype, contiguous."""
        if self.complex:
            x = torch.view_as_real(x.resolve_conj())
        elif x.dim() == 2 and x.dtype is self.acc:
            return x.contiguous()
        return x.reshape(x.shape[0], self.size).to(self.acc).contiguous()

    def as_model_input(self, z: Tensor) -> Tensor:
        """[..., E] points -> [rows, *shape] as the model takes them, a view of dense ones."""
        if self.complex:
            return torch.view_as_complex(z.reshape(-1, *self.shape, 2))
        return z.reshape(-1, *self.shape)

    def flat_gradient(self, grad: Tensor, points: int) -> Tensor:
        """Gradient of ``as_model_input`` -> [K, B, E]."""
        if self.complex:
            grad = torch.view_as_real(grad)
        return grad.reshape(points, -1, self.size)

    def fold(self, rows: Tensor, keep_complex: bool = False) -> Tensor:
        """Sums or attributions [B, E] -> [B, *shape].

        The attribution to a complex number is the sum of those to its parts, a real number. A mean
        gradient keeps both (``keep_complex``).
        """
        if not self.complex:
            return rows.reshape(-1, *self.shape)
        pairs = rows.reshape(-1, *self.shape, 2)
        return torch.view_as_complex(pairs) if keep_complex else pairs.sum(-1)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def check_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """The tensors of ``inputs``: floating or complex, with one first dimension."""
    found = as_tuple(inputs)
    if not found:
        raise fail_value("inputs", "a tensor or a tuple of tensors", "an empty tuple")
    for i, x in enumerate(found):
        name = "inputs" if len(found) == 1 else f"inputs[{i}]"
        if not isinstance(x, Tensor):
            raise fail_type(name, "a torch.Tensor", x)
        if x.dtype not in _DTYPES and x.dtype not in _COMPLEX:
            raise fail_kind(
                name,
                "a floating or complex tensor (for token ids use LayerIntegratedGradients)",
                str(x.dtype),
            )
        readable(name, x)
        if x.dim() == 0:
            raise fail_value(name, "a batch dimension first", "a 0-dim tensor")
        if 0 in x.shape[1:]:
            raise fail_value(name, "samples of at least one number", tuple(x.shape))
        if x.shape[0] != found[0].shape[0]:
            raise fail_value(name, f"the batch size of inputs[0], {found[0].shape[0]}", x.shape[0])
        if x.device != found[0].device:
            raise fail_value(name, f"the device of inputs[0], {found[0].device}", x.device)
    return found


def parameters_of(module: torch.nn.Module) -> Iterator[Tensor]:
    """``module.parameters()``, in its order, without the names, which take most of its time; a
    shared one may come twice."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.parameters()
        return
    pending: list[Any] = [module]
    seen = set()
    while pending:
        m = pending.pop()
        if m is None or m in seen:
            continue
        seen.add(m)
        for p in m._parameters.values():
            if p is not None:
                yield p
        if m._modules:
            pending += reversed(m._modules.values())


def parameter_dtype(forward: Forward) -> torch.dtype | None:
    """Dtype of the first floating parameter of a module."""
    if not isinstance(forward, torch.nn.Module):
        return None
    return next((p.dtype for p in parameters_of(forward) if p.dtype.is_floating_point), None)


def narrow_dtype(forward: Forward) -> torch.dtype | None:
    """The dtype of a 16-bit module, which float32 inputs are given in."""
    own = parameter_dtype(forward)
    return own if own in (torch.float16, torch.bfloat16) else None


def spaces(forward: Forward, inputs: tuple[Tensor, ...]) -> tuple[Space, ...]:
    """Layout of each input; float32 inputs of a 16-bit module get points in its dtype."""
    narrow = narrow_dtype(forward)
    found = []
    for x in inputs:
        real = _COMPLEX.get(x.dtype, x.dtype)
        points = narrow if narrow is not None and x.dtype == torch.float32 else real
        found.append(Space(x.shape[1:], x.dtype, points, accumulator(real)))
    return tuple(found)


def filled(name: str, like: Tensor, value: Any, dtype: torch.dtype) -> Tensor:
    """One number in the shape and place of ``like``."""
    try:
        return torch.full_like(like, value, dtype=dtype)
    except (RuntimeError, OverflowError) as error:
        raise fail_value(name, f"a number that torch makes {dtype}", value) from error


def flat_baselines(
    baselines: Any, inputs: tuple[Tensor, ...], layout: tuple[Space, ...], name: str = "baselines"
) -> tuple[Tensor, ...]:
    """Baselines as [R, E], R = 1 or B: zeros, a number, one row, or a row for each sample."""
    given = (None,) * len(inputs) if baselines is None else as_tuple(baselines)
    if len(given) != len(inputs):
        raise fail_value(name, f"one for each of {len(inputs)} inputs", len(given))
    found = []
    for i, (b, x, space) in enumerate(zip(given, inputs, layout, strict=True)):
        which = name if len(inputs) == 1 else f"{name}[{i}]"
        if b is None:
            b = 0
        if isinstance(b, Tensor):
            readable(which, b)
        if isinstance(b, Tensor) and b.dim() > 0:
            if b.shape[1:] != x.shape[1:] or b.shape[0] not in (1, x.shape[0]):
                raise fail_value(
                    which,
                    f"a number or shape {tuple(x.shape)}, or 1 in place of the batch",
                    tuple(b.shape),
                )
            if b.is_complex() and not space.complex:
                raise fail_kind(which, f"a real tensor as its input {x.dtype}", str(b.dtype))
            b = b.to(device=x.device, dtype=x.dtype if space.complex else space.acc)
        elif isinstance(b, (int, float, complex, Tensor)) and not isinstance(b, bool):
            if isinstance(b, complex) and not space.complex:
                raise fail_type(which, "a real number", b)
            full = x.dtype if space.complex else space.acc
            if isinstance(b, Tensor):
                b = b.to(device=x.device, dtype=full).expand(1, *x.shape[1:])
            elif b == 0:
                b = x.new_zeros((1, *x.shape[1:]), dtype=full)
            else:
                b = filled(which, x.detach()[:1], b, full)
        else:
            raise fail_type(which, "a tensor or a number", b)
        found.append(space.flat(b))
    return tuple(found)


# -------------------------------------------------------------------------------------- targets

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Index = tuple[Any, ...]  # what follows the row in output[row, ...]: ints or int64 tensors [B]


def _one_target(target: Any, batch: int, name: str) -> Index | None:
    """Captum's forms -> None, or the index behind the batch dimension."""
    if target is None:
        return None
    if isinstance(target, bool):
        raise fail_type(name, "an int, a tuple, a list or a tensor", target)
    if isinstance(target, int):
        return (target,)
    if isinstance(target, tuple):
        if not all(isinstance(t, int) for t in target):
            raise fail_value(name, "a tuple of ints", target)
        return target
    if isinstance(target, Tensor):
        readable(name, target)
        if target.dtype not in _INTEGERS:
            raise fail_kind(name, "an integer tensor", str(target.dtype))
        if target.numel() == 1 and batch != 1:
            return (int(target),)
        if target.dim() == 0:
            return (int(target),)
        if target.dim() != 1 or target.numel() != batch:
            raise fail_value(name, f"one index, or shape ({batch},)", tuple(target.shape))
        return (target.to(torch.int64),)
    if isinstance(target, list):
        if len(target) != batch:
            raise fail_value(name, f"a list of {batch} targets, one a sample", len(target))
        if all(isinstance(t, int) for t in target):
            return (torch.tensor(target, dtype=torch.int64),)
        if all(isinstance(t, tuple) and len(t) == len(target[0]) for t in target):
            columns = zip(*target, strict=True)
            return tuple(torch.tensor(c, dtype=torch.int64) for c in columns)
        raise fail_value(name, "a list of ints or of tuples of one length", target)
    raise fail_type(name, "an int, a tuple, a list or a tensor", target)


@dataclass(frozen=True)
class Target:
    """What of the output is differentiated: one index, several, or all ("all": known late)."""

    indices: tuple[Index | None, ...]
    all: bool = False
    multi: bool = False

    @staticmethod
    def of(target: Any, batch: int, multi_target: bool = False) -> Target:
        if isinstance(target, str):
            if target != "all":
                raise fail_value("target", "'all' or a target", repr(target))
            return Target((), all=True, multi=True)
        if not multi_target:
            return Target((_one_target(target, batch, "target"),))
        if isinstance(target, Tensor) and target.dim() == 1:
            target = target.tolist()
        if not isinstance(target, (list, tuple)) or not target:
            raise fail_value("target", "a list of targets with multi_target=True", target)
        return Target(
            tuple(_one_target(t, batch, f"target[{i}]") for i, t in enumerate(target)), multi=True
        )

    def select(self, rows: slice | Tensor) -> Target:
        """The targets of some samples."""
        indices = tuple(
            None
            if index is None
            else tuple(t[rows.to(t.device) if isinstance(rows, Tensor) else rows]
                       if isinstance(t, Tensor) else t for t in index)
            for index in self.indices
        )  # fmt: skip
        return Target(indices, self.all, self.multi)

    def pick(self, output: Any, points: int, batch: int) -> list[Tensor]:
        """One number a row for each target: tensors (points * batch,), or one () for all rows.

        Raises:
            TypeError: the output is no floating tensor.
            ValueError: no target where one is needed, or one out of range.
        """
        self._check_output(output)
        if self.all:
            return list(output.reshape(output.shape[0], -1).unbind(1))
        return [self.pick_one(output, index, points, batch) for index in self.indices]

    def roots(self, output: Any, points: int, batch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each target: what to differentiate, the gradient to start with, and ``pick``'s value.

        A class of [rows, classes] starts from a matrix with ones in its column, where backward of
        a selection would begin by making that matrix.
        """
        self._check_output(output)
        rows = points * batch
        flat = output.reshape(output.shape[0], -1) if self.all else output
        if self.all and flat.shape[0] != rows:
            raise fail_value("forward", f"{rows} rows of output", flat.shape[0])
        if flat.dim() != 2 or flat.is_complex() or flat.shape[0] != rows:
            picked = self.pick(output, points, batch)
            picked = [v.real if v.is_complex() else v for v in picked]
            return [(v, torch.ones_like(v), v.detach()) for v in picked]
        indices = [(i,) for i in range(flat.shape[1])] if self.all else self.indices
        found = []
        seen = flat.detach()
        for index in indices:
            values = self.pick_one(seen, index, points, batch)
            if index is None:
                found.append((flat, torch.ones_like(flat), values))
                continue
            (t,) = index
            if isinstance(t, Tensor):
                place = (t.to(flat.device) % flat.shape[1]).repeat(points)[:, None]
                found.append((flat, torch.zeros_like(flat).scatter_(1, place, 1), values))
            else:
                found.append((flat, _column(flat, t), values))
        return found

    def _check_output(self, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise fail_type("forward", "a function that returns a torch.Tensor", output)
        if not (output.is_floating_point() or output.is_complex()):
            raise fail_kind("forward", "a function that returns floating numbers",
                            str(output.dtype))  # fmt: skip
        if self.all and output.dim() < 2:
            raise fail_value("target", "an output with classes for 'all'", tuple(output.shape))

    @staticmethod
    def pick_one(output: Tensor, index: Index | None, points: int, batch: int) -> Tensor:
        """The numbers of one target."""
        rows = points * batch
        if index is None:
            if output.numel() not in (1, rows):
                raise fail_value(
                    "target", f"an index into the output of shape {tuple(output.shape)}", None
                )
            return output.reshape(-1)
        sizes = tuple(output.shape[1:])
        if len(index) != len(sizes):
            raise fail_value(
                "target", f"{len(sizes)} indices for an output of shape {tuple(output.shape)}",
                f"{len(index)}",
            )  # fmt: skip
        if output.shape[0] != rows:
            raise fail_value("forward", f"{rows} rows of output", output.shape[0])
        for t, size in zip(index, sizes, strict=True):
            if isinstance(t, Tensor):
                low, high = (int(t.min()), int(t.max())) if t.numel() else (0, -1)
            else:
                low = high = t
            if low < -size or high >= size:
                raise fail_value(
                    "target", f"indices below {size}, the size of the output",
                    high if high >= size else low,
                )  # fmt: skip
        if len(index) == 1 and isinstance(index[0], int):
            return output.select(1, index[0])
        place: tuple[Any, ...] = (slice(None), *index)
        if any(isinstance(t, Tensor) for t in index):
            where = [
                t.to(output.device).repeat(points) if isinstance(t, Tensor) else t for t in index
            ]
            place = (torch.arange(rows, device=output.device), *where)
        return output[place]


_KEPT = 2**14  # elements of a matrix worth keeping


def _column(like: Tensor, column: int) -> Tensor:
    """Zeros in the shape of ``like``, with ones in a column; not to be written to."""
    if like.numel() > _KEPT:
        return _new_column(like.shape, column, like.dtype, like.device)
    return _kept_column(like.shape, column, like.dtype, like.device)


def _new_column(shape: torch.Size, column: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    ones = torch.zeros(shape, dtype=dtype, device=device)
    ones[:, column] = 1
    return ones


@functools.lru_cache(maxsize=64)
def _kept_column(
    shape: torch.Size, column: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with ordinary_tensors():
        return _new_column(shape, column, dtype, device)


def arguments_of(given: Any) -> tuple[Any, ...]:
    """Additional arguments of ``forward``, whose tensors may have to be selected and repeated."""
    args = () if given is None else as_tuple(given)
    for a in args:
        if isinstance(a, Tensor):
            dense("additional_forward_args", a)
    return args


def select_args(args: Sequence[Any], rows: slice | Tensor, batch: int) -> tuple[Any, ...]:
    """Additional arguments of some samples: tensors with the batch first are indexed."""
    return tuple(a[rows] if _batched(a, batch) else a for a in args)


def repeat_args(args: Sequence[Any], points: int, batch: int) -> tuple[Any, ...]:
    """Additional arguments for all rows [K * B]: row k * B + b has those of sample b."""
    if points == 1:
        return tuple(args)
    return tuple(a.repeat(points, *(1,) * (a.dim() - 1)) if _batched(a, batch) else a for a in args)


def _batched(a: Any, batch: int) -> bool:
    return isinstance(a, Tensor) and a.dim() > 0 and a.shape[0] == batch
