"""What autograd keeps: the instrument behind every memory claim of this package."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
    owned: set[int] = set()
    running: list[str] = [""]
    handles = []
    if isinstance(fn_or_model, nn.Module):
        for t in [*fn_or_model.parameters(), *fn_or_model.buffers()]:
            owned.add(t.untyped_storage().data_ptr())
        for name, module in fn_or_model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                running.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                running.pop()

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))

    seen: dict[int, Tensor] = {}  # keeps storages alive, so that addresses are not reused
    per_module: dict[str, int] = defaultdict(int)
    tensors = []

    def pack(t: Tensor) -> Tensor:
        base = t if t._base is None else t._base
        storage = t.untyped_storage()
        address = storage.data_ptr()
        if isinstance(base, nn.Parameter) or address in owned or address in seen:
            return t
        if storage.nbytes() == 0:
            return t
        seen[address] = t
        per_module[running[-1]] += storage.nbytes()
        tensors.append((running[-1], tuple(t.shape), t.dtype, storage.nbytes()))
        return t

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = fn_or_model(*inputs, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    del output
    result = SavedBytes(sum(per_module.values()))
    result.per_module = dict(per_module)
    result.tensors = tensors
    return result
