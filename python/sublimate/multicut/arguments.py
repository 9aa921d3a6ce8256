"""Checks of this family's arguments, and the one form in which the solvers see a batch.

Everything here raises TypeError or ValueError naming the argument, what was expected and what came,
before any kernel runs. Values are read (finite? in range?), which on a GPU waits for the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._dtypes import accumulator

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def finite(argument: str, x: Tensor) -> None:
    """No NaN and no infinity. One pass: the sum is finite only then, but for an overflow."""
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        bad = x[~torch.isfinite(x)].flatten()[0]
        raise _checks.fail_value(argument, "finite numbers", f"{bad.item()}")


def features(argument: str, x: Any, *, batches: bool = True) -> None:
    """(n, d) or, with ``batches``, (B, n, d); d at least 1; finite."""
    _checks.floating_tensor(argument, x)
    _checks.readable(argument, x)
    ranks = (2, 3) if batches else (2,)
    shape = "(n, d) or (B, n, d)" if batches else "(n, d)"
    if x.dim() not in ranks:
        raise _checks.fail_value(argument, f"shape {shape}", f"{tuple(x.shape)}")
    if x.shape[-1] == 0:
        raise _checks.fail_value(argument, "at least one feature, d >= 1", f"{tuple(x.shape)}")
    finite(argument, x.detach())


def number(argument: str, value: Any, *, tensor: bool = False) -> None:
    """A finite int or float; with ``tensor`` also a floating tensor of one element."""
    if tensor and isinstance(value, Tensor):
        _checks.readable(argument, value)
        if value.numel() != 1 or not value.is_floating_point():
            raise _checks.fail_kind(
                argument,
                "a finite number or a floating tensor of one element",
                f"{value.dtype} of shape {tuple(value.shape)}",
            )
        _checks.floating_tensor(argument, value)
        finite(argument, value.detach())
        return
    _checks.number(argument, value)
    if not math.isfinite(value):
        raise _checks.fail_value(argument, "a finite number", value)


def labels(argument: str, value: Any, x: Tensor) -> None:
    """An integer per node of x, on its device."""
    if not isinstance(value, Tensor):
        raise _checks.fail_type(argument, "a torch.Tensor of integers", value)
    if value.dtype not in INTEGERS:
        raise _checks.fail_kind(argument, "a tensor of integers", str(value.dtype))
    _checks.dense(argument, value)
    if value.shape != x.shape[:-1]:
        raise _checks.fail_value(
            argument, f"one label per node, shape {tuple(x.shape[:-1])}", tuple(value.shape)
        )
    _same_device(argument, value, x)


def weights(argument: str, value: Any, x: Tensor) -> None:
    """None, or a positive weight per node of x, on its device."""
    if value is None:
        return
    _checks.floating_tensor(argument, value)
    if value.shape != x.shape[:-1]:
        raise _checks.fail_value(
            argument, f"one weight per node, shape {tuple(x.shape[:-1])}", tuple(value.shape)
        )
    _same_device(argument, value, x)
    finite(argument, value.detach())
    if value.numel() and float(value.detach().min()) <= 0:
        raise _checks.fail_value(argument, "positive weights", float(value.detach().min()))


def _same_device(argument: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise _checks.fail_value(argument, f"a tensor on {x.device}", value.device)


def offsets(value: Any, x: Tensor) -> list[int] | None:
    """Borders of the instances in the rows of x, or None.

    Args:
        value: None, or a one-dimensional integer tensor or sequence: 0, ascending, rows of x.
    """
    if value is None:
        return None
    if x.dim() != 2:
        raise _checks.fail_value("offsets", "None for features of shape (B, n, d)", "offsets")
    if isinstance(value, Tensor):
        _checks.readable("offsets", value)
        if value.dtype not in INTEGERS or value.dim() != 1:
            raise _checks.fail_kind(
                "offsets",
                "a one-dimensional tensor of integers",
                f"{value.dtype} of shape {tuple(value.shape)}",
            )
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _checks.fail_type("offsets", "a sequence or tensor of integers", value)
    if any(isinstance(o, bool) or not isinstance(o, int) for o in value):
        raise _checks.fail_kind("offsets", "integers", repr(list(value)[:8]))
    rows = list(value)
    expected = f"ascending numbers from 0 to {x.shape[0]}, the rows of features"
    if not rows or rows[0] != 0 or rows[-1] != x.shape[0]:
        raise _checks.fail_value("offsets", expected, _short(rows))
    for i, (low, high) in enumerate(itertools.pairwise(rows)):
        if high < low:
            raise _checks.fail_value("offsets", expected, f"{high} after {low} at place {i + 1}")
    return rows


def _short(rows: list[int]) -> str:
    return repr(rows) if len(rows) <= 6 else f"{rows[:3]} ... {rows[-2:]}"


@dataclass(frozen=True)
class Batch:
    """Instances one below the other.

    Attributes:
        rows: borders of the instances, from 0 to the number of nodes.
        shape: of a result per node: (n,), (B, n) or (N,) with offsets.
        single: one instance that came without a batch dimension.
    """

    rows: list[int]
    shape: torch.Size
    single: bool

    @property
    def size(self) -> int:
        return len(self.rows) - 1

    def instance_of_nodes(self, device: torch.device) -> Tensor:
        """(N,) int64: which instance a node belongs to."""
        sizes = torch.tensor(self.rows, device=device).diff()
        return torch.repeat_interleave(torch.arange(self.size, device=device), sizes)


def batch(x: Tensor, offset_rows: list[int] | None) -> Batch:
    """How the nodes of checked features divide into instances."""
    if x.dim() == 3:
        b, n = x.shape[:2]
        return Batch([i * n for i in range(b + 1)], x.shape[:-1], False)
    if offset_rows is None:
        return Batch([0, x.shape[0]], x.shape[:-1], True)
    return Batch(offset_rows, x.shape[:-1], False)


def must_link(value: Any, x: Tensor, batch: Batch) -> None:
    """None, or pairs of nodes (p, 2), numbered over all instances, each within one instance."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise _checks.fail_type("must_link", "a torch.Tensor of integers, shape (p, 2)", value)
    if value.dtype not in INTEGERS:
        raise _checks.fail_kind("must_link", "a tensor of integers", str(value.dtype))
    _checks.dense("must_link", value)
    if value.dim() != 2 or value.shape[1] != 2:
        raise _checks.fail_value("must_link", "shape (p, 2)", tuple(value.shape))
    _same_device("must_link", value, x)
    if value.numel() == 0:
        return
    nodes = x.shape[:-1].numel()
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= nodes:
        raise _checks.fail_value(
            "must_link", f"nodes from 0 to {nodes - 1}", low if low < 0 else high
        )
    if batch.size > 1:
        instance = batch.instance_of_nodes(value.device)[value.long()]
        across = (instance[:, 0] != instance[:, 1]).nonzero()
        if len(across):
            pair = value[across[0, 0]].tolist()
            raise _checks.fail_value("must_link", "pairs within one instance", pair)


def checked(x: Any, alpha: Any, w: Any, negative_dims: Any, borders: Any, *, tensor: bool) -> Batch:
    """Checks what most functions share; ``tensor``: alpha may be a tensor of one element."""
    features("features", x)
    number("alpha", alpha, tensor=tensor)
    weights("weights", w, x)
    _checks.integer_between("negative_dims", negative_dims, 0, x.shape[-1])
    return batch(x, offsets(borders, x))


# ------------------------------------------------------------------------- the form for kernels


def rows(x: Tensor) -> Tensor:
    """(N, d) contiguous, in the dtype that is computed in, without history."""
    return x.detach().reshape(-1, x.shape[-1]).to(accumulator(x.dtype)).contiguous()


def flat(w: Tensor | None, x: Tensor) -> Tensor | None:
    """(N,) weights in the dtype of the rows x."""
    return None if w is None else w.detach().reshape(-1).to(x.dtype).contiguous()


def borders(b: Batch, device: torch.device) -> Tensor:
    """(B + 1,) int64 offsets."""
    return torch.tensor(b.rows, dtype=torch.int64, device=device)


def per_instance(values: Tensor, b: Batch) -> Tensor:
    """One number for one instance, (B,) for a batch."""
    return values[0] if b.single else values
