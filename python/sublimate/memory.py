"""What autograd keeps: the instrument behind every memory claim of this package."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from . import _trace
from ._plan import LayerPlan, Plan, plan

__all__ = ["LayerPlan", "Plan", "SavedBytes", "plan", "saved_bytes"]


class SavedBytes(int):
    """Bytes kept for backward: an int with its breakdown.

    Attributes:
        per_module: bytes by name of the innermost module that was running ("" outside any).
        tensors: (module name, shape, dtype, bytes) of every counted tensor.
    """

    per_module: dict[str, int]
    tensors: list[tuple[str, tuple[int, ...], torch.dtype, int]]

    def table(self) -> str:
        """One line a module, and the total."""
        lines = [f"{name or '(no module)':40s} {n:>14,d}" for name, n in self.per_module.items()]
        return "\n".join([*lines, f"{'total':40s} {int(self):>14,d}"])


def saved_bytes(fn_or_model: Callable[..., Any], *inputs: Any, **keywords: Any) -> SavedBytes:
    """Runs a forward pass and counts the memory it keeps for backward.

    Every tensor autograd saves is seen through ``torch.autograd.graph.saved_tensors_hooks`` and its
    storage counted once in full, however many nodes share it or whatever part of it they view.
    Storages of parameters and buffers are not counted: they live anyway. Inputs are, if saved.

    Args:
        fn_or_model: callable or module, run once with gradients enabled.
        inputs, keywords: its arguments.

    Returns:
        The number of bytes, with ``per_module``, ``tensors`` and a printable ``table()``.
    """
    trace = _trace.run(fn_or_model, inputs, keywords)
    per_module: dict[str, int] = defaultdict(int)
    for storage in trace.storages.values():
        per_module[storage.first] += storage.nbytes
    result = SavedBytes(trace.total)
    result.per_module = dict(per_module)
    result.tensors = [(s.first, s.shape, s.dtype, s.nbytes) for s in trace.storages.values()]
    return result
