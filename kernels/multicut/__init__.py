"""Triton kernels of dense multicut; the launchers are the interface."""

from .fwd import best_cluster, contract, move, negative_sum, topk

__all__ = ["best_cluster", "contract", "move", "negative_sum", "topk"]
