"""Ordinary tensors: whether there is more than that, and how to make one that outlives its call.

Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as _is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether nothing watches what is done with the tensors: no tracing, mode, transform (a wrapper
    of a torch.func transform may outlive it: ``vjp`` gives one to backward), subclass or lazy view
    (which the dispatcher would resolve).

    Then a registered op may be called past the dispatcher, whose way through Python costs 8 us.
    Every tensor of the call has to be given.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for t in tensors:
        if t is not None and (
            type(t) is not Tensor or t.is_neg() or t.is_conj() or _is_functorch_wrapped_tensor(t)
        ):
            return False
    return True


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
