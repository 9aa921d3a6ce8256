"""``progress=`` takes tqdm, rich and callables; off, it is not there."""

from __future__ import annotations

import io
import threading
import time

import pytest
import torch
from helpers.mixtures import mixture
from sublimate import multicut
from sublimate.multicut.progress import Reporter

X, _ = mixture(300, 8, 0, 0.8)


def test_callable_sees_the_end():
    seen = []
    labels = multicut.dense_multicut(X, alpha=0.4, progress=lambda *a: seen.append(a))
    assert seen and seen[-1][0] == seen[-1][1] > 0
    assert all(0 <= done <= total and isinstance(what, str) for done, total, what in seen)
    assert [d for d, _, _ in seen] == sorted(d for d, _, _ in seen)
    assert torch.equal(labels, multicut.dense_multicut(X, alpha=0.4))


def test_tqdm_bar_and_class():
    tqdm = pytest.importorskip("tqdm", reason="pip install tqdm").tqdm
    with tqdm(file=io.StringIO()) as bar:
        multicut.dense_multicut(X, alpha=0.4, progress=bar)
        assert bar.n == bar.total > 0

    made = []

    class Bar(tqdm):
        def __init__(self, *a, **o):
            super().__init__(*a, file=io.StringIO(), **o)
            made.append(self)

        def close(self):
            self.closed = True
            super().close()

    multicut.dense_multicut(X, alpha=0.4, progress=Bar)
    (bar,) = made
    assert bar.n == bar.total > 0 and bar.closed


def test_rich():
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=io.StringIO())) as display:
        multicut.dense_multicut(X, alpha=0.4, progress=display)
        (task,) = display.tasks
        assert task.finished and task.completed == task.total > 0


def test_off_is_nothing():
    for value in (None, False):
        with Reporter(value) as report:
            assert report is None


def test_the_gil_is_released():
    """While a kernel runs in one thread, another one goes on."""
    x, _ = mixture(5000, 16, 0, 0.8)
    done = []

    def work():
        multicut.dense_multicut(x, alpha=0.4, method="gaec", refine=None)  # one long kernel call
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while not done:
        time.sleep(1e-3)
        ticks += 1
    thread.join()
    assert ticks > 5, "a kernel that holds the GIL lets the other thread run before and after only"


def test_an_exception_in_the_callback_comes_through_and_leaves_no_damage():
    """As Ctrl-C does: the features are as before, and the next call works."""
    before = X.clone()

    def stop(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        multicut.dense_multicut(X, alpha=0.4, progress=stop)
    assert torch.equal(X, before)
    due = multicut.dense_multicut(X, alpha=0.4)
    assert torch.equal(due, multicut.dense_multicut(X, alpha=0.4))
