"""Pieces that every family's ``autograd.Function`` needs. Imports torch alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _AllGiven:
    """Stands for ``inspect.BoundArguments`` where every argument was given by position."""

    kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """Nothing is missing."""


class _PositionalSignature(inspect.Signature):
    """Binds by counting: a forward of ours has no defaults and is never called by keyword."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != len(self.parameters):
            return super().bind(*args, **kwargs)  # says what is wrong
        return _AllGiven(args)


def keep_signature(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Class decorator: stores a signature of ``forward`` that binds in no time.

    ``apply`` of a Function with ``setup_context`` looks the signature up and binds to it on every
    call: with inspect's own, half the overhead of a small op.
    """
    forward: Any = function.forward
    parameters = inspect.signature(forward).parameters.values()
    forward.__signature__ = _PositionalSignature(list(parameters))
    return function


class without_autocast:
    """Context manager: autocast is off for this kind of device, where it is on.

    For sums that must not be narrower than they are written, and costs nothing where it is off.
    """

    def __init__(self, device: torch.device) -> None:
        on = device.type != "meta" and torch.is_autocast_enabled(device.type)
        self.inner = torch.autocast(device.type, enabled=False) if on else None

    def __enter__(self) -> None:
        if self.inner is not None:
            self.inner.__enter__()

    def __exit__(self, *arguments: Any) -> None:
        if self.inner is not None:
            self.inner.__exit__(*arguments)


class _Refuse(torch.autograd.Function):
    """Identity whose backward raises: put on gradients that must not be differentiated again."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, reason: str) -> Tensor:
        ctx.reason = reason
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.reason)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record an op on these tensors, backward."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def carries_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives are asked for (torch.func.jvp, forward_ad): an op that has
    no rule for them loses the tangents without a word, and the derivative would be 0."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def refuse_tangents(reason: str, *tensors: Tensor) -> None:
    """Raises RuntimeError(reason) if forward-mode derivatives are asked for."""
    if carries_tangent(*tensors):
        raise RuntimeError(reason)


def _functorch_derivatives() -> int:
    """Number of torch.func derivative transforms (grad, vjp, jacrev, jvp ...) now active."""
    functorch = torch._C._functorch
    kinds = (functorch.TransformType.Grad, functorch.TransformType.Jvp)
    return sum(level.key() in kinds for level in functorch.get_interpreter_stack() or ())


def refuse_double_backward(reason: str) -> Callable[..., Any]:
    """Decorates ``backward``: differentiating its results raises RuntimeError(reason).

    torch's ``once_differentiable`` raises only if the incoming gradient itself requires a gradient;
    otherwise a gradient penalty through the op would be silently constant. Here every result of a
    backward that records (``create_graph=True``) refuses.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Any) -> Any:
            if not torch.is_grad_enabled():  # the ordinary backward: nothing below is needed
                return backward(ctx, *grads)
            # Compiled graphs refuse double backward by themselves, and trace this function.
            recording = not torch.compiler.is_compiling()
            transforms = _functorch_derivatives() if recording else 0
            if transforms > 1:
                raise RuntimeError(reason)
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not recording or transforms == 1:  # torch.func records always, even for one grad
                return results
            return tuple(
                _Refuse.apply(r.detach().requires_grad_(), reason) if isinstance(r, Tensor) else r
                for r in results
            )

        return wrapped

    return decorate
