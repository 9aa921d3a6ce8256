"""Replacing modules inside a model, and undoing it; shared by the families' ``convert``."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import _checks

_ORIGINAL = "_sublimate_original"  # in __dict__ of a replacement: what stood there before


@dataclass(frozen=True)
class Replacement:
    """One replaced place: dotted name, and what it was and became, as printed."""

    name: str
    was: str
    now: str


@dataclass
class Report:
    """What ``convert`` did: prints as a table.

    Attributes:
        replaced: places that were replaced, in model order.
        skipped: (place, reason) of activations that stay as they were.
    """

    replaced: list[Replacement] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}"]
        lines += [f"  {r.name}: {r.was} -> {r.now}" for r in self.replaced]
        lines += [f"not converted {len(self.skipped)}"] if self.skipped else []
        lines += [f"  {name or '(model)'}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


def describe(value: Any) -> str:
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"function {value.__name__}"
    return repr(value) if isinstance(value, nn.Module) else type(value).__name__


def replace(model: nn.Module, make: Callable[[str, Any], nn.Module | None]) -> list[Replacement]:
    """Replaces children and functions held as attributes where ``make(name, old)`` gives a module.

    A child that several parents share is replaced by one shared module. The model itself is never
    replaced (there is no parent to hold the new one).
    """
    made: dict[int, nn.Module] = {}
    done: list[Replacement] = []
    for prefix, parent in list(model.named_modules()):
        # What is inside a replaced module is no longer part of the model, and stays as it was.
        gone = any(prefix == d.name or prefix.startswith(d.name + ".") for d in done)
        if gone or hasattr(parent, _ORIGINAL):
            continue
        places = [(k, v) for k, v in parent._modules.items() if v is not None]
        places += [
            (k, v) for k, v in vars(parent).items() if callable(v) and hasattr(v, "__name__")
        ]
        for attribute, old in places:
            name = f"{prefix}.{attribute}" if prefix else attribute
            if hasattr(old, _ORIGINAL):
                continue
            new = made.get(id(old)) or make(name, old)
            if new is None:
                continue
            made[id(old)] = new
            new.__dict__[_ORIGINAL] = (old,)  # in a tuple, so that it is no submodule
            if isinstance(old, nn.Module):
                new.train(old.training)
            else:
                delattr(parent, attribute)
            setattr(parent, attribute, new)
            done.append(Replacement(name, describe(old), describe(new)))
    return done


def _put_back(parent: nn.Module, attribute: str) -> None:
    """Puts the original of a replaced child back to where it was."""
    child = parent._modules[attribute]
    assert child is not None
    (old,) = child.__dict__[_ORIGINAL]
    if isinstance(old, nn.Module):
        old.train(child.training)
    else:
        delattr(parent, attribute)
    setattr(parent, attribute, old)


def undo(model: nn.Module, replaced: list[Replacement]) -> None:
    """Takes one ``replace`` back, and leaves what was replaced before it."""
    for place in replaced:
        prefix, _, attribute = place.name.rpartition(".")
        _put_back(model.get_submodule(prefix), attribute)


def restore(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Puts back what ``replace`` took out, where the replacement is of one of ``kinds``.

    Returns:
        Number of places restored.

    Raises:
        TypeError: not a torch.nn.Module.
    """
    _checks.module("model", model)
    count = 0
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if isinstance(child, kinds) and _ORIGINAL in child.__dict__:
                _put_back(parent, attribute)
                count += 1
    return count
