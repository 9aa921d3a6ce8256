"""Tensors that outlive the call which makes them. Imports torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Inside, tensors are ordinary ones with data, on the CPU by default, whatever the caller does.

    A cached table made under inference mode could not be saved for backward later; under a fake
    mode or ``torch.device("meta")`` it would hold no data; under a torch.func transform it would
    belong to a level that ends with the call.
    """
    with (
        torch.inference_mode(False),
        temporarily_clear_interpreter_stack(),
        _disable_current_modes(),
        torch.device("cpu"),
    ):
        yield
