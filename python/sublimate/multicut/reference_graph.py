"""Greedy additive edge contraction of a sparse graph, in plain Python: the truth of graph.cpp."""

from __future__ import annotations

from torch import Tensor


def gaec_graph(
    edges: Tensor, costs: Tensor, labels: Tensor, merges: Tensor, gains: Tensor, count: Tensor
) -> None:
    """Contracts the edge of largest positive cost until there is none; ties by (lower, higher) end.

    Args:
        edges: (m, 2) int64; repeated edges add up.
        costs: (m,) float64.
        labels: (n,) out, numbered by first appearance.
        merges, gains, count: out, (n, 2), (n,) and (1,): surviving and absorbed end, which are the
            smallest members of the two clusters, and cost; rows from count on are not written.
    """
    graph: dict[int, dict[int, float]] = {i: {} for i in range(labels.numel())}
    for (u, v), cost in zip(edges.tolist(), costs.tolist(), strict=True):
        graph[u][v] = graph[v][u] = graph[u].get(v, 0.0) + cost
    root = list(graph)
    found = 0
    while True:
        best = max(
            ((c, -u, -v) for u, ends in graph.items() for v, c in ends.items() if u < v and c > 0),
            default=None,
        )
        if best is None:
            break
        cost, low, high = best[0], -best[1], -best[2]
        merges[found, 0], merges[found, 1], gains[found] = low, high, cost
        found += 1
        del graph[low][high]
        for v, c in graph.pop(high).items():
            if v != low:
                del graph[v][high]
                graph[low][v] = graph[v][low] = graph[low].get(v, 0.0) + c
        root = [low if r == high else r for r in root]
    names: dict[int, int] = {}
    for i, r in enumerate(root):
        labels[i] = names.setdefault(r, len(names))
    count[0] = found
