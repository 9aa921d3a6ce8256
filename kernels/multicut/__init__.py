"""Triton kernels of dense multicut; the launchers are the interface."""

from .fwd import best_cluster, inner_product_topk, negative_sum

__all__ = ["best_cluster", "inner_product_topk", "negative_sum"]
