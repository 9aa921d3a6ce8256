"""Entries of multicut. Features are mostly whole numbers: sums are exact, so answers are equal."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from hypothesis import strategies as st
from reliability import values as V
from reliability.table import Arguments, entry
from reliability.values import Draw
from sublimate import multicut
from torch import Tensor

WHOLE = ("whole", "whole", "whole", "zero", "normal", "nan", "inf", "huge")
METHODS = ("auto", "star", "average", "reciprocal", "gaec", "lazy")


def _weights(draw: Draw, shape: list[int], dtype: torch.dtype) -> Tensor:
    # Powers of two, so that division by weights rounds nothing either (nor do roots of alpha).
    return 2 ** torch.randint(3, shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def _features(draw: Draw, *, batches: bool = True) -> tuple[Arguments, list[int]]:
    """Features, weights, negative_dims and backend, and the shape of a number per node."""
    nodes = V.dims(draw, 1, 2 if batches else 1, largest=17)
    dtype, d = V.floating(draw), V.one(draw, 3, 1, 5)
    arguments = {
        "features": V.tensor(draw, [*nodes, d], dtype, kinds=WHOLE),
        "weights": V.maybe(draw, lambda: _weights(draw, nodes, dtype)),
        "negative_dims": V.one(draw, 0, 0, 1),
        "backend": V.backend(draw),
    }
    return arguments, nodes


def _labels(draw: Draw, shape: list[int]) -> Tensor:
    dtype = V.one(draw, torch.int64, torch.int32, torch.uint8)
    values = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    count = 1
    for size in shape:
        count *= size
    repeated = torch.tensor(values, dtype=dtype).repeat(count + 1)
    return repeated[:count].view(shape)


def _offsets(draw: Draw, nodes: list[int]) -> Any:
    if len(nodes) > 1 or V.one(draw, 0, 0, 1) == 0:
        return None
    borders = [0, V.one(draw, 0, nodes[0] // 2), nodes[0]]
    return torch.tensor(borders) if draw(st.booleans()) else borders


@entry("multicut.dense_multicut", multicut.dense_multicut, compared=False)
def _solve(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw)
    if V.one(draw, 0, 0, 0, 1) and len(nodes) == 1 and nodes[0] > 1:
        arguments["must_link"] = torch.tensor([[0, nodes[0] - 1]])
    return {**arguments, "alpha": V.one(draw, 0.0, 1, -2.5), "method": V.one(draw, *METHODS),
            "refine": V.one(draw, None, "moves", "kernighan-lin"), "restarts": V.one(draw, 1, 1, 2),
            "offsets": _offsets(draw, nodes), "return_info": draw(st.booleans())}  # fmt: skip


@entry("multicut.objective", multicut.objective)
def _objective(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw)
    alpha = V.one(draw, 0.0, 1.5, torch.tensor(0.5), torch.tensor(0.5, requires_grad=True))
    return {**arguments, "labels": _labels(draw, nodes), "alpha": alpha,
            "offsets": _offsets(draw, nodes)}  # fmt: skip


@entry("multicut.lower_bound", multicut.lower_bound, compared=False)
def _bound(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw)
    return {**arguments, "labels": V.maybe(draw, lambda: _labels(draw, nodes)),
            "alpha": V.one(draw, 0.0, 1.5), "offsets": _offsets(draw, nodes)}  # fmt: skip


@entry("multicut.margin_loss", multicut.margin_loss, compared=False)
def _loss(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw)
    return {**arguments, "target_labels": _labels(draw, nodes), "alpha": V.one(draw, 0.0, 1.5),
            "margin": V.one(draw, 1.0, 0, 2), "reduction": V.one(draw, "mean", "sum", "none"),
            "method": V.one(draw, *METHODS), "offsets": _offsets(draw, nodes)}  # fmt: skip


@entry("multicut.inner_product_topk", multicut.inner_product_topk)
def _topk(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw)
    arguments.update(k=V.one(draw, 1, 2, 5, 40), alpha=V.one(draw, 0.0, 4.0),
                     exclude_self=draw(st.booleans()))  # fmt: skip
    features = arguments["features"]
    if draw(st.booleans()):
        shape = [*nodes[:-1], V.one(draw, 4, 1, 0, 17)]
        arguments["other"] = V.tensor(
            draw, [*shape, features.shape[-1]], features.dtype, kinds=WHOLE
        )
        if arguments["weights"] is not None:
            arguments["other_weights"] = _weights(draw, shape, features.dtype)
    return arguments


@entry("multicut.assign", multicut.assign)
def _assign(draw: Draw) -> Arguments:
    arguments, nodes = _features(draw, batches=False)
    features = arguments["features"]
    new = [V.one(draw, 3, 1, 0, 9), features.shape[-1]]
    arguments["new_features"] = V.tensor(draw, new, features.dtype, kinds=WHOLE)
    if draw(st.booleans()):
        arguments["new_weights"] = _weights(draw, new[:1], features.dtype)
    return {**arguments, "labels": _labels(draw, nodes), "alpha": V.one(draw, 0.0, 1.0),
            "reject": draw(st.booleans())}  # fmt: skip


@entry("multicut.alpha_path", multicut.alpha_path, compared=False)
def _path(draw: Draw) -> Arguments:
    return _features(draw, batches=False)[0]


@entry("multicut.suggest_alpha", multicut.suggest_alpha, compared=False)
def _suggested(draw: Draw) -> Arguments:
    arguments, _ = _features(draw, batches=False)
    either = V.one(draw, {"quantile": 0.5}, {"n_clusters": 2}, {"quantile": 1}, {})
    return {**arguments, **either}


def _read_path(features: Tensor, what: str, value: Any) -> Any:
    return getattr(multicut.alpha_path(features), what)(value)


@entry("multicut.AlphaPath", _read_path, compared=False, early=False, names=("value",))
def _levels(draw: Draw) -> Arguments:
    what = V.one(draw, "labels", "n_clusters", "alpha_for")
    features = V.tensor(draw, [V.one(draw, 5, 1, 2, 0), 2], kinds=("whole",))
    return {"features": features, "what": what, "value": V.one(draw, 1, 0, 0.5, -1.0, 2)}


@entry("multicut.gaec_graph", multicut.gaec_graph)
def _graph(draw: Draw) -> Arguments:
    nodes = V.one(draw, 5, 2, 9)
    end = st.integers(0, nodes - 1)
    ends = draw(st.lists(st.tuples(end, end), max_size=12))
    edges = torch.tensor(ends, dtype=V.one(draw, torch.int64, torch.int32)).view(-1, 2)
    costs = V.tensor(draw, [len(ends)], V.floating(draw), kinds=WHOLE)
    return {"edges": edges, "costs": costs, "nodes": V.one(draw, None, nodes, nodes + 3),
            "return_merges": draw(st.booleans()), "backend": V.backend(draw)}  # fmt: skip


def _estimated(X: Any = None, new: Any = None, fit: Any = None, **parameters: Any) -> Any:
    fitted = multicut.DenseMulticut(**parameters).fit(X, **(fit or {}))
    return fitted.labels_, fitted.predict(X if new is None else new)


@entry("multicut.DenseMulticut", _estimated, compared=False, early=False,
       names=("X", "new", *inspect.signature(multicut.DenseMulticut).parameters))  # fmt: skip
def _estimator(draw: Draw) -> Arguments:
    X = V.tensor(draw, [V.one(draw, 6, 1, 2, 9), 3], kinds=("whole", "normal"), grad=False)
    return {"X": X.numpy() if draw(st.booleans()) else X, "alpha": V.one(draw, 0.0, 1.0),
            "n_clusters": V.one(draw, None, None, 2, 1), "normalize": draw(st.booleans()),
            "method": V.one(draw, *METHODS), "refine": V.one(draw, None, "moves")}  # fmt: skip
