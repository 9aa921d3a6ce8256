"""Clustering of complete graphs whose costs are inner products; see README.md in this folder."""

from typing import Any

from . import reference
from .functional import dense_multicut, lower_bound, objective
from .graph import gaec_graph
from .learning import margin_loss
from .linkage import AlphaPath
from .pairs import assign, inner_product_topk
from .path import alpha_path, suggest_alpha
from .solver import MulticutInfo

__all__ = [
    "AlphaPath",
    "DenseMulticut",
    "MulticutInfo",
    "alpha_path",
    "assign",
    "dense_multicut",
    "gaec_graph",
    "inner_product_topk",
    "lower_bound",
    "margin_loss",
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
