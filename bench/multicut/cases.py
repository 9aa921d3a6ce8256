"""Benchmarks of dense multicut against one matrix product over all pairs, and other solvers.

The instances are normalised Gaussian mixtures of about sqrt(n) centres in 32 dimensions: "easy"
(noise 0.7, alpha 0.4) and "hard" (noise 1.3, alpha 0.25, overlapping). The bar is the time of
``features @ features.T`` in blocks, fp32, nothing kept. What a provider gives up is the gap of its
objective to the trivial lower bound (column ``gradient_error``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sublimate import _backends
from sublimate._parity import Measurement
from sublimate.multicut import dense_multicut, lower_bound, objective
from torch import Tensor

from bench.harness.case import Case, Forward, Provider, Unavailable

D = 32
KINDS = {"easy": (0.7, 0.4), "hard": (1.3, 0.25)}
_ROWS = 2048  # of a block of the product
#: Largest n for peers that store all pairs: distances, or a graph of n^2 / 2 edges.
_TABLE, _GRAPH = 5000, 1000


def mixture(n: int, sigma: float) -> tuple[Tensor]:
    """(n, D) float32 unit rows, always the same."""
    rng = np.random.Generator(np.random.PCG64(0))
    clusters = max(2, round(n**0.5))
    centres = rng.standard_normal((clusters, D))
    z = rng.integers(0, clusters, size=n)
    x = centres[z] + sigma * rng.standard_normal((n, D))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return (torch.from_numpy(x.astype(np.float32)),)


# ------------------------------------------------------------------------------------ providers


def _product() -> Forward:
    def forward(x: Tensor) -> Tensor:
        block = x.new_empty(min(_ROWS, len(x)), len(x))
        for i in range(0, len(x), _ROWS):
            torch.mm(x[i : i + _ROWS], x.T, out=block[: len(x[i : i + _ROWS])])
        return block[0]

    return forward


def _ours(alpha: float, restarts: int, backend: str, device: str) -> Provider:
    def make() -> Forward:
        why = _backends.reasons("multicut", backend, device, torch.float32)
        if why:
            raise Unavailable("; ".join(why))
        return lambda x: dense_multicut(x, alpha=alpha, restarts=restarts, backend=backend)

    name = f"sublimate-{backend}" + (f"-restarts{restarts}" if restarts > 1 else "")
    # The bar is that of one start.
    return Provider(name, make, bars={} if restarts > 1 else None)


def _scipy(alpha: float) -> Forward:
    from scipy.cluster.hierarchy import fcluster, linkage

    def forward(x: Tensor) -> Tensor:
        rows = x.double().numpy()
        distances = 1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        found = fcluster(linkage(distances, "average"), 1 - alpha, "distance")
        return torch.from_numpy(found)

    return forward


def _sklearn(alpha: float) -> Forward:
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - alpha
    )
    return lambda x: torch.from_numpy(model.fit_predict(x.numpy()))


def _bioimage(alpha: float, chains: bool) -> Forward:
    try:
        import bioimage_cpp as bic
    except ImportError as error:
        raise Unavailable(f"{error}; pip install bioimage-cpp") from error

    def forward(x: Tensor) -> Tensor:
        n = len(x)
        i, j = np.triu_indices(n, 1)
        values = (x.double() @ x.double().T - alpha).numpy()[i, j]
        graph = bic.graph.UndirectedGraph.from_edges(n, np.stack([i, j], 1).astype(np.uint64))
        problem = bic.graph.multicut.MulticutObjective(graph, values)
        found = bic.graph.multicut.GreedyAdditiveMulticut().optimize(problem)
        if chains:
            found = bic.graph.multicut.KernighanLinMulticut().optimize(problem)
        return torch.from_numpy(np.asarray(found).astype(np.int64))

    return forward


def _providers(n: int, alpha: float, device: str) -> tuple[Provider, ...]:
    peers = [Provider("product", _product, peer=True)]
    if device == "cpu" and n <= _TABLE:
        peers += [
            Provider("scipy-average", lambda: _scipy(alpha), peer=True),
            Provider("sklearn-average", lambda: _sklearn(alpha), peer=True),
        ]
    if device == "cpu" and n <= _GRAPH:
        peers += [
            Provider("bioimage-gaec", lambda: _bioimage(alpha, False), peer=True),
            Provider("bioimage-gaec-kl", lambda: _bioimage(alpha, True), peer=True),
        ]
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    ours = [_ours(alpha, restarts, b, device) for b in backends for restarts in (1, 4)]
    return (*peers, *ours)


# -------------------------------------------------------------------------- parity and quality


def _gap(alpha: float) -> Callable[..., float]:
    def measure(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> float:
        """(objective - bound) / |bound|; NaN for what is no clustering."""
        (x,) = inputs
        labels = forward(x)
        if labels.shape != x.shape[:1] or labels.is_floating_point():
            return float("nan")
        cost, bound = float(objective(x, labels.long(), alpha)), float(lower_bound(x, alpha))
        return (cost - bound) / abs(bound)

    return measure


def _verify(alpha: float) -> Callable[..., list[Measurement]]:
    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        """The gap is one of a good clustering, and a second call gives the same labels."""
        different = int((forward(*inputs) != forward(*inputs)).sum())
        return [
            Measurement("default", "gap to the bound", _gap(alpha)(forward, inputs, dy), 0.05),
            Measurement("default", "labels of two calls", float(different), 0.0),
        ]

    return verify


# ---------------------------------------------------------------------------------------- cases


def _case(kind: str, n: int, device: str, bar: float | None) -> Case:
    sigma, alpha = KINDS[kind]
    return Case(
        id=f"multicut/default/{kind}/float32/{n}x{D}/{device}",
        family="multicut",
        op="dense_multicut",
        device=device,
        dtype=torch.float32,
        shapes=((n, D),),
        bits=0,
        # The first pass over all pairs, each once; the rest depends on the data.
        bytes_moved={"fwd": 4 * n * D},
        flops={"fwd": n * n * (D + 1)},
        providers=_providers(n, alpha, device),
        verify=_verify(alpha),
        gradient_error=_gap(alpha),
        bars={} if bar is None else {"fwd": bar},
        modes=("fwd",),
        output=(n,),
        make_inputs=lambda: tuple(t.to(device) for t in mixture(n, sigma)),
        differentiable=False,
    )


def cases(quick: bool = False) -> list[Case]:
    """All cases, CPU and GPU; ``quick`` shrinks the data until only the harness is tested."""
    if quick:
        return [_case(kind, 300, device, None) for device in ("cpu", "cuda") for kind in KINDS]
    found = []
    for kind in KINDS:
        found += [_case(kind, n, "cpu", None) for n in (1000, 5000)]
        found += [_case(kind, 20_000, "cpu", 1.0), _case(kind, 50_000, "cpu", 1.2)]
        found += [_case(kind, n, "cuda", None) for n in (20_000, 200_000)]
    return found
