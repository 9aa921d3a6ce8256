"""Data and small instruments of the randomized linear tests."""

from __future__ import annotations

import torch
from sublimate.randomized_linear import reference
from torch import Tensor

#: The three kinds of input of the published comparison.
KINDS = ("iid", "heavy", "correlated")
N, WIDTH, OUT, K = 96, 7, 5, 24


def inputs(kind: str, n: int = N) -> tuple[Tensor, Tensor]:
    """x (n, 7) and dy (n, 5), float64: iid normal; a mean plus heavy-tailed rows; rank one."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dy = normal(n, WIDTH), normal(n, OUT)
    if kind == "heavy":
        x = (x + 1) * (0.7 * normal(n, 1)).exp()
        dy = (dy + 0.5) * (0.7 * normal(n, 1)).exp()
    if kind == "correlated":
        shared = normal(n, 1)
        x = shared * normal(1, WIDTH) + 0.05 * x
        dy = shared * normal(1, OUT) + 0.05 * dy
    return x, dy


def dense_gradients(x: Tensor, dy: Tensor, sketch: str, k: int, seeds: Tensor) -> Tensor:
    """(seeds, O, I): the reference's estimates of dy^T x for many seeds at once."""

    def one(seed: Tensor) -> Tensor:
        if sketch in reference.OBLIVIOUS:
            kept, other = (reference.project(t, sketch, k, seed) for t in (x, dy))
        else:
            index, square = reference.sample(sketch, reference.row_probabilities(x), k, seed)
            kept, other = reference.gather(x, index, square), reference.gather(dy, index)
        return other.T @ kept

    return torch.vmap(one, chunk_size=200)(seeds)
