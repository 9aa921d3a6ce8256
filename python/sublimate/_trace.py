"""Every tensor that autograd saves, with the modules that were running. Imports torch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Storage:
    """One storage that is kept: its bytes, who saved it first, and everyone who did."""

    nbytes: int
    first: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    owners: set[str] = field(default_factory=set)


@dataclass
class Trace:
    """Storages by address; modules in the order of running ("" outside any)."""

    storages: dict[int, Storage] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    saves: list[tuple[str, int, int, int]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(s.nbytes for s in self.storages.values())

    def storages_of(self, name: str) -> set[int]:
        return {address for owner, address, _, _ in self.saves if owner == name}

    def saved_by(self, name: str) -> set[tuple[int, int, int]]:
        """(address, elements, bytes of one) of the tensors that a module saved."""
        return {(a, numel, size) for owner, a, numel, size in self.saves if owner == name}


def run(function: Callable[..., Any], inputs: Any, keywords: Any) -> Trace:
    """Calls a function or module once, recording gradients, and lists what it keeps.

    Storages of a module's parameters and buffers are left out: they live anyway.
    """
    trace = Trace()
    owned: set[int] = set()
    running: list[str] = [""]
    handles = []
    if isinstance(function, nn.Module):
        for t in [*function.parameters(), *function.buffers()]:
            owned.add(t.untyped_storage().data_ptr())
        for name, module in function.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                running.append(name)
                if name not in trace.order:
                    trace.order.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                running.pop()

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))

    alive: list[Tensor] = []  # so that addresses are not reused

    def pack(t: Tensor) -> Tensor:
        base = t if t._base is None else t._base
        storage = t.untyped_storage()
        address, name = storage.data_ptr(), running[-1]
        if isinstance(base, nn.Parameter) or address in owned or storage.nbytes() == 0:
            return t
        if address not in trace.storages:
            alive.append(t)
            shape = (t.numel(),) if t.is_nested else tuple(t.shape)
            trace.storages[address] = Storage(storage.nbytes(), name, shape, t.dtype)
        trace.storages[address].owners.add(name)
        trace.saves.append((name, address, t.numel(), t.element_size()))
        return t

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = function(*inputs, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    del output
    return trace
