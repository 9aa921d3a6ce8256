"""Triton kernels of the randomized linear backward; the launchers are the interface."""

from .fwd import PROJECTIONS, gather, hadamard, project

__all__ = ["PROJECTIONS", "gather", "hadamard", "project"]
