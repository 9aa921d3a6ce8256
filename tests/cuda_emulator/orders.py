"""Run a host function under several thread orders of the emulator.

A kernel without races gives the same bits under all of them. One that lacks a barrier usually does
not: under ``forward`` a thread sees what lower ones wrote, under ``reverse`` what higher ones did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

VARIABLE = "SUBLIMATE_EMULATOR_ORDER"
ORDERS = ("forward", "reverse", "random:1", "random:2")


@contextmanager
def order(name: str) -> Iterator[None]:
    """Every launch of the emulator inside runs its blocks and threads in this order."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def outcomes(run: Callable[[], Result]) -> dict[str, Result]:
    """``run()`` under each of ``ORDERS``: fresh outputs each time are up to ``run``."""
    results = {}
    for name in ORDERS:
        with order(name):
            results[name] = run()
    return results
