"""Gaussian mixtures on the sphere, the instances of the multicut family's tests and benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mixture(
    n: int, d: int, seed: int, sigma: float, clusters: int | None = None
) -> tuple[Tensor, Tensor]:
    """(n, d) float32 unit rows around about sqrt(n) centres, and which centre each came from."""
    clusters = clusters or max(2, round(n**0.5))
    rng = np.random.Generator(np.random.PCG64(seed))
    centres = rng.standard_normal((clusters, d))
    z = rng.integers(0, clusters, size=n)
    x = centres[z] + sigma * rng.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(z)


def separated(
    n: int, d: int, clusters: int, seed: int, sigma: float = 0.08
) -> tuple[Tensor, Tensor]:
    """(n, d) float32 unit rows around the first ``clusters`` axes, and which axis."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(0, clusters, (n,), generator=generator)
    x = torch.eye(d)[z] + sigma * torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(x, dim=1), z
