"""Triton kernels of the few-bit activations; the launchers are the interface."""

from .bwd import activation_bwd, gated_bwd
from .fwd import activation_fwd, gated_fwd
from .math import EXACT, FUNCTIONS, GATES

__all__ = [
    "EXACT",
    "FUNCTIONS",
    "GATES",
    "activation_bwd",
    "activation_fwd",
    "gated_bwd",
    "gated_fwd",
]
