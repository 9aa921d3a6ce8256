"""Other processes and threads of a test."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def environment(**variables: str) -> dict[str, str]:
    """This process's variables and ``variables``; a child finds the same packages, whether
    installed or from a checkout."""
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": path, **variables}


def at_once(function: Callable[[int], None], callers: int) -> None:
    """Runs function(i) in threads that start together; raises what one of them raised."""
    start = threading.Barrier(callers)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            start.wait()
            function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
