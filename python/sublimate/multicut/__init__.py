"""Clustering of complete graphs whose costs are inner products; see README.md in this folder."""

from typing import Any

from . import reference
from .functional import (
    alpha_path,
    assign,
    gaec_graph,
    inner_product_topk,
    lower_bound,
    objective,
    suggest_alpha,
)
from .linkage import AlphaPath

__all__ = [
    "AlphaPath",
    "DenseMulticut",
    "alpha_path",
    "assign",
    "gaec_graph",
    "inner_product_topk",
    "lower_bound",
    "objective",
    "reference",
    "suggest_alpha",
]


def __getattr__(name: str) -> Any:
    # scikit-learn is optional and takes a second to import: only who asks for it pays.
    if name == "DenseMulticut":
        from .estimator import DenseMulticut

        return DenseMulticut
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
