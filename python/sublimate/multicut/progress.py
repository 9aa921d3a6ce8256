"""One face for whatever a caller passes as ``progress=``: tqdm, rich or a function."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from .. import _checks

#: (done, total, what is running) -> None
Report = Callable[[int, int, str], None]
_EXPECTED = "None, a tqdm bar or class, a rich.progress.Progress, or a callable (done, total, what)"


class Reporter:
    """Context manager that turns ``progress=`` into a ``Report``, or None when it is off.

    Args:
        progress: None or False (off); a ``tqdm`` bar, or the class itself, which makes and closes
            one; a ``rich.progress.Progress``, which gets a task; or a callable.

    Raises:
        TypeError: something else.
    """

    def __init__(self, progress: Any) -> None:
        self._bar: Any = None
        self._report: Report | None = None
        if progress is None or progress is False:
            return
        if isinstance(progress, type):
            if not hasattr(progress, "update"):
                raise _checks.fail_kind("progress", _EXPECTED, f"the class {progress.__name__}")
            self._bar = progress(total=0)
            self._report = _tqdm(self._bar)
        elif hasattr(progress, "add_task") and hasattr(progress, "update"):
            self._report = _rich(progress)
        elif hasattr(progress, "update") and hasattr(progress, "total"):
            self._report = _tqdm(progress)
        elif callable(progress):
            self._report = progress
        else:
            raise _checks.fail_type("progress", _EXPECTED, progress)

    def __enter__(self) -> Report | None:
        return self._report

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _tqdm(bar: Any) -> Report:
    def report(done: int, total: int, what: str) -> None:
        if bar.total != total:
            bar.total = total
        bar.set_description_str(what, refresh=False)
        bar.update(done - bar.n)

    return report


def _rich(display: Any) -> Report:
    task = display.add_task("multicut", total=None)

    def report(done: int, total: int, what: str) -> None:
        display.update(task, completed=done, total=total, description=what)

    return report
