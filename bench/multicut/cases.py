"""Benchmarks of dense multicut against one matrix product over all pairs, and other solvers.

The instances are normalised Gaussian mixtures of about sqrt(n) centres in 32 dimensions: "easy"
(noise 0.7, alpha 0.4) and "hard" (noise 1.3, alpha 0.25, overlapping). The bar is the time of
``features @ features.T`` in blocks, fp32, nothing kept. What a provider gives up, in the column
``gradient_error``, is by how much its objective is above the best known one, relative; negative
where it is below. Providers whose one call takes tens of seconds: ``bench.multicut.once``.
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
SIZES = (1000, 2000, 5000, 10_000, 20_000, 50_000)
#: The lowest objective known of each instance, rounded to cents. Published for "easy" and n = 5000
#: (greedy contraction and Kernighan-Lin on the explicit graph) or found by 4 to 24 restarts here.
BEST = {
    "easy": (-189617.57, -779323.35, -4897949.18, -19662367.90, -79343796.15, -497507461.68),
    "hard": (-119675.61, -487437.10, -3066140.21, -12316939.83, -49642101.65, -311124784.98),
}
#: A result is a good clustering if it is at most so much above the best known, relative.
LIMIT = 1e-4
_ROWS = 2048  # of a block of the product
#: Largest n for peers that store all pairs: distances, or a graph of n^2 / 2 edges.
_TABLE, _GRAPH = 10_000, 2000


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
    from scipy.spatial.distance import pdist

    def forward(x: Tensor) -> Tensor:
        rows = x.double().numpy()
        distances = pdist(rows, "cosine")  # the rows are unit vectors
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


def providers(n: int, alpha: float, device: str, every: bool = False) -> tuple[Provider, ...]:
    """Ours and the peers that can be timed in rounds at that size; ``every``: all peers."""
    peers = [Provider("product", _product, peer=True)]
    if device == "cpu" and (every or n <= _TABLE):
        peers += [
            Provider("scipy-average", lambda: _scipy(alpha), peer=True),
            Provider("sklearn-average", lambda: _sklearn(alpha), peer=True),
        ]
    if device == "cpu" and (every or n <= _GRAPH):
        peers += [
            Provider("bioimage-gaec", lambda: _bioimage(alpha, False), peer=True),
            Provider("bioimage-gaec-kl", lambda: _bioimage(alpha, True), peer=True),
        ]
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    ours = [_ours(alpha, restarts, b, device) for b in backends for restarts in (1, 4)]
    return (*peers, *ours)


# -------------------------------------------------------------------------- parity and quality


def best_known(kind: str, n: int) -> float | None:
    """The lowest objective known of an instance."""
    return BEST[kind][SIZES.index(n)] if n in SIZES else None


def excess(alpha: float, best: float | None, labels: Tensor, x: Tensor) -> float:
    """(objective - best) / |best|, best = the lower bound if it is None; NaN if no clustering."""
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        return float("nan")
    cost = float(objective(x.double(), labels.long(), alpha))
    least = float(lower_bound(x, alpha)) if best is None else best
    return (cost - least) / abs(least)


def _excess(alpha: float, best: float | None) -> Callable[..., float]:
    def measure(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> float:
        return excess(alpha, best, forward(*inputs), *inputs)

    return measure


def _verify(alpha: float, best: float | None) -> Callable[..., list[Measurement]]:
    def verify(forward: Forward, inputs: tuple[Tensor, ...], dy: Tensor) -> list[Measurement]:
        """A good clustering, and a second call gives the same labels."""
        labels = forward(*inputs)
        different = int((forward(*inputs) != labels).sum())
        above = excess(alpha, best, labels, *inputs)
        # Gaps to the trivial bound are within 3 % on these mixtures (family README), and 9 % at
        # n = 200.
        limit = 0.1 if best is None else LIMIT
        return [
            Measurement("default", "above the best known", max(above, 0.0), limit),
            Measurement("default", "labels of two calls", float(different), 0.0),
        ]

    return verify


# ---------------------------------------------------------------------------------------- cases


def _case(kind: str, n: int, device: str, bar: float | None) -> Case:
    (sigma, alpha), best = KINDS[kind], best_known(kind, n)
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
        providers=providers(n, alpha, device),
        verify=_verify(alpha, best),
        gradient_error=_excess(alpha, best),
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
    bars = {20_000: 1.0, 50_000: 1.2}
    found = []
    for kind in KINDS:
        found += [_case(kind, n, "cpu", bars.get(n)) for n in SIZES]
        found += [_case(kind, n, "cuda", None) for n in (20_000, 200_000)]
    return found
