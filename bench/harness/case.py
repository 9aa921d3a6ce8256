"""What a benchmark is: a call, its peers, its traffic and arithmetic, and what it should reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from sublimate._parity import Measurement
from torch import Tensor

#: What is timed. "fwd": the forward with autograd recording. "bwd": the backward through autograd's
#: engine, after an untimed forward. "both": one after the other.
MODES = ("fwd", "bwd", "both")

Forward = Callable[..., Tensor]


class Unavailable(RuntimeError):
    """Raised by ``Provider.make``: this provider cannot run on this machine, and why."""


Verify = Callable[[Forward, tuple[Tensor, ...], Tensor], list[Measurement]]
GradientError = Callable[[Forward, tuple[Tensor, ...], Tensor], float]


@dataclass(frozen=True)
class Provider:
    """One way to compute the result.

    Attributes:
        name: "eager", "compile", "sublimate-<backend>" or "sublimate-<backend>-<variant>".
        make: () -> the forward, called once; raises Unavailable where it cannot run here.
        peer: other people's way, to which ours are compared.
        verify, gradient_error, bars, flops: where this provider's differ from the case's, for
            variants of an op that take turns with one another and one peer.
    """

    name: str
    make: Callable[[], Forward]
    peer: bool = False
    verify: Verify | None = None
    gradient_error: GradientError | None = None
    bars: dict[str, float] | None = None
    flops: dict[str, int] | None = None


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        id: unique, "family/op/bits/dtype/size/device".
        shapes: of the inputs, all of ``dtype``.
        output: shape of the result; that of the first input if None.
        make_inputs: () -> the inputs, where normal numbers of the shapes will not do.
        differentiable: whether the result has a gradient; without one, only "fwd" is timed, and
            ``gradient_error`` tells by other means what a provider gives up.
        bits: of the code, 0 where there is none.
        bytes_moved, flops: of each mode, ours: the least that the algorithm must move and compute.
        providers: in the order of the table; the first peer is the one the bars refer to.
        verify: (forward, inputs, dy) -> parity of a provider of ours on the data that is timed.
        gradient_error: (forward, inputs, dy) -> relative RMS error of the gradient against the
            exact one: what an approximate op gives up.
        bars: mode -> largest ratio of our median to that of the first peer.
        least_fraction: of the roofline, in each mode; 0 where none is set.
        calls: calls in one sample, more than 1 where one is too short to time.
    """

    id: str
    family: str
    op: str
    device: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    bits: int
    bytes_moved: dict[str, int]
    flops: dict[str, int]
    providers: tuple[Provider, ...]
    verify: Verify
    gradient_error: GradientError
    bars: dict[str, float] = field(default_factory=dict)
    least_fraction: float = 0.0
    modes: tuple[str, ...] = MODES
    calls: int = 1
    output: tuple[int, ...] | None = None
    make_inputs: Callable[[], tuple[Tensor, ...]] | None = None
    differentiable: bool = True

    @property
    def elements(self) -> int:
        """Elements of one input."""
        return torch.Size(self.shapes[0]).numel()

    def inputs(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Leaves that require a gradient, and the upstream one; the same numbers every time."""
        generator = torch.Generator(self.device).manual_seed(0)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        made = self.make_inputs() if self.make_inputs else tuple(map(normal, self.shapes))
        leaves = tuple(t.requires_grad_(self.differentiable) for t in made)
        return leaves, normal(self.output or self.shapes[0])
