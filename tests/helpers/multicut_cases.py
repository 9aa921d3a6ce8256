"""Inputs of the dense multicut primitives, and what a kernel may differ by from the reference.

The reference sums with torch's product, a kernel along one chain of multiply-adds: values differ in
the last places, and candidates whose values differ by less may stand in either order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import sublimate.multicut.ops  # noqa: F401  (registers the operators)
import torch
from torch import Tensor

run = torch.ops.sublimate


@dataclass
class Instances:
    """Nodes of several instances; ``nodes`` are the first arguments of every op."""

    features: Tensor
    weights: Tensor | None
    offsets: Tensor
    alpha: float
    negative_dims: int

    @property
    def nodes(self) -> tuple[Tensor, Tensor | None, Tensor, float, int]:
        return self.features, self.weights, self.offsets, self.alpha, self.negative_dims

    def one(self, b: int) -> Instances:
        """Instance b on its own."""
        begin, end = self.offsets[b : b + 2].tolist()
        rows = slice(begin, end)
        weights = None if self.weights is None else self.weights[rows].contiguous()
        offsets = self.offsets.new_tensor([0, end - begin])
        features = self.features[rows].contiguous()
        return Instances(features, weights, offsets, self.alpha, self.negative_dims)

    def put(self, device: str) -> Instances:
        weights = None if self.weights is None else self.weights.to(device)
        return Instances(
            self.features.to(device),
            weights,
            self.offsets.to(device),
            self.alpha,
            self.negative_dims,
        )


def mixture(
    sizes: int | tuple[int, ...],
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    alpha: float = 0.35,
    weighted: bool = False,
    negative_dims: int = 0,
    noise: float = 0.9,
) -> Instances:
    """Normalised Gaussian mixtures of about sqrt(n) centres."""
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    g = torch.Generator().manual_seed(seed)
    parts = []
    for n in sizes:
        centres = torch.randn(max(1, round(n**0.5)), d, generator=g, dtype=torch.float64)
        pick = torch.randint(0, len(centres), (n,), generator=g)
        x = centres[pick] + noise * torch.randn(n, d, generator=g, dtype=torch.float64)
        parts.append(x / x.norm(dim=1, keepdim=True).clamp_min(1e-9))
    x = torch.cat(parts).to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    w = torch.rand(len(x), generator=g, dtype=torch.float64).add(0.5).to(acc) if weighted else None
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return Instances(x, w, offsets, alpha, negative_dims)


def integers(sizes: int | tuple[int, ...], d: int, seed: int = 0, **options) -> Instances:  # type: ignore[no-untyped-def]
    """Small integers: values are exact in any order of summation, and ties are many."""
    case = mixture(sizes, d, seed=seed, **options)
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, case.features.shape, generator=g).float()
    weights = None if case.weights is None else torch.randint(1, 3, (len(x),), generator=g).float()
    # sqrt(4) = 2: the factors of alpha are integers as well.
    alpha = 4.0 * math.copysign(1, case.alpha)
    return Instances(x, weights, case.offsets, alpha, case.negative_dims)


def slots_of(case: Instances, clusters: int, empty: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A random labelling in slots, ``empty`` free ones per instance, and its state.

    Returns:
        labels, sums, masses, counts, slot_offsets
    """
    g = torch.Generator().manual_seed(seed)
    labels, offsets = [], [0]
    for n in case.offsets.diff().tolist():
        used = min(clusters, n)
        own = torch.randint(0, max(used, 1), (n,), generator=g)
        own[:used] = torch.arange(used)  # none of the used ones is empty
        labels.append(own + offsets[-1])
        offsets.append(offsets[-1] + used + empty)
    flat = torch.cat(labels).to(case.features.device)
    state = run.multicut_contract(case.features, case.weights, flat, offsets[-1], "reference")
    return flat, *state, torch.tensor(offsets, device=case.features.device)


def tolerance(dtype: torch.dtype) -> float:
    """Difference of two orders of summing d <= 200 products of size 1 at most."""
    return 2e-14 if dtype == torch.float64 else 4e-6


def assert_same_choice(
    values: Tensor, indices: Tensor, true_values: Tensor, true_indices: Tensor, atol: float
) -> None:
    """Values agree; where an index differs, its value ties with the true one within ``atol``."""
    values, true_values = values.double(), true_values.double()
    torch.testing.assert_close(values, true_values, rtol=0, atol=atol, equal_nan=True)
    different = indices != true_indices
    if not different.any():
        return
    assert ((indices < 0) == (true_indices < 0)).all(), "missing where there are candidates"
    # Rows hold the same columns save at ties: a changed column must tie with its place.
    gap = (values - true_values).abs()[different]
    assert (gap <= atol).all()
    assert different.double().mean() < 0.02, f"{int(different.sum())} of {different.numel()} differ"


def shuffled(case: Instances, seed: int = 0) -> Tensor:
    """All nodes, instance by instance, each instance's in random order."""
    g = torch.Generator().manual_seed(seed)
    begins, sizes = case.offsets[:-1].tolist(), case.offsets.diff().tolist()
    parts = [torch.randperm(n, generator=g) + b for b, n in zip(begins, sizes, strict=True)]
    return torch.cat(parts).to(case.features.device)
