"""One entry per public function: how arguments that it might take are drawn, and how it is called.

``families`` hold the entries; ``strategy(entry)`` draws complete calls, right ones and spoilt ones.
``public_names()`` is what must be covered, from the packages' ``__all__``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import sublimate
from hypothesis import strategies as st
from reliability.values import Draw, spoilt
from sublimate import (
    fewbit,
    kronecker_attention,
    memory,
    multicut,
    path_integral,
    randomized_linear,
)

Arguments = dict[str, Any]

MODULES: tuple[ModuleType, ...] = (
    sublimate, fewbit, randomized_linear, path_integral, kronecker_attention, multicut, memory,
)  # fmt: skip
#: Public names that take no arguments of a user: exceptions, and results that functions return.
#: What of a result can be called has an entry of its own.
RESULTS = {
    "BackendUnavailable", "NativeError", "ArgumentError", "LayerNoise", "NoiseReport", "Info",
    "MoreauInfo", "Masks", "LayerPlan", "SavedBytes", "MulticutInfo", "memory.Plan",
    "kronecker_attention.Plan",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """How to call one public function.

    Attributes:
        name: of the function, e.g. "fewbit.gelu"; a method or second form has a suffix.
        build: draws plausible arguments by name.
        call: (**arguments) -> result.
        names: arguments that may be spoilt.
        early: bad arguments are refused before any kernel runs. False where the refusal depends on
            what a model returns, or on values computed on the way.
        compared: the reference must agree within rounding.
    """

    name: str
    build: Callable[[Draw], Arguments]
    call: Callable[..., Any]
    names: tuple[str, ...] = field(default=())
    early: bool = True
    compared: bool = True


TABLE: dict[str, Entry] = {}


def short(module: ModuleType) -> str:
    return module.__name__.removeprefix("sublimate.")


def entry(
    name: str,
    call: Callable[..., Any],
    *,
    early: bool = True,
    compared: bool = True,
    names: tuple[str, ...] | None = None,
) -> Callable[[Callable[[Draw], Arguments]], Callable[[Draw], Arguments]]:
    """Enters a function under ``name``; ``names`` default to the parameters of ``call``."""

    def enter(build: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
        assert name not in TABLE, name
        found = names
        if found is None:
            kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            parameters = inspect.signature(call).parameters.values()
            found = tuple(p.name for p in parameters if p.kind in kinds)
        TABLE[name] = Entry(name, build, call, found, early, compared)
        return build

    return enter


def public_names() -> set[str]:
    """Callables in the ``__all__`` of the packages, less results and exceptions."""
    found = set()
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            full = f"{short(module)}.{name}"
            if callable(value) and name not in RESULTS and full not in RESULTS:
                found.add(full)
    return found


@st.composite
def _calls(draw: Draw, found: Entry) -> Arguments:
    return spoilt(draw, found.build(draw), found.names)


def strategy(found: Entry) -> st.SearchStrategy[Arguments]:
    return _calls(found)


def entries() -> dict[str, Entry]:
    """The whole table; fills it on the first call."""
    from reliability import attribution, clustering, layers  # noqa: F401

    return TABLE
