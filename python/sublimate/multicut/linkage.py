"""Average linkage on all inner products in O(n d) memory: one tree for every alpha.

The mean cost between clusters A and B is <mu_A, mu_B> - alpha: alpha shifts every candidate alike,
so the order of contractions does not depend on it, and the partition for alpha consists of the
contractions whose height <mu_A, mu_B> is above alpha. Average linkage is reducible (the mean to a
union lies between the means to its parts), so all reciprocal best pairs may be contracted at once
without changing the tree (Bruynooghe, 1978; Murtagh, 1983).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import arguments
from .cost import signature

#: means [K, d] -> (largest inner product of each row with another [K], its column [K])
BestPartner = Callable[[Tensor], tuple[Tensor, Tensor]]


def _level(alpha: Any) -> float:
    """A number, of whatever library, as a float."""
    if isinstance(alpha, Tensor):
        arguments.number("alpha", alpha, tensor=True)
    elif isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise _checks.fail_type("alpha", "a number", alpha)
    elif isinstance(alpha, int):
        _checks.number("alpha", alpha)
    value = float(alpha)
    if value != value:
        raise _checks.fail_value("alpha", "a number", alpha)
    return value


@dataclass(frozen=True, repr=False)
class AlphaPath:
    """The partitions of average linkage for every alpha; made by ``alpha_path``.

    Attributes:
        merges: (n - 1, 2) int64, highest first: the smallest members of the two clusters joined,
            the lower one first, whose name the union keeps.
        heights: (n - 1,) float64, descending: mean inner product between the two. A merge is part
            of the partition for alpha if its height is above alpha.
    """

    merges: Tensor
    heights: Tensor

    @property
    def n(self) -> int:
        return len(self.merges) + 1 if self._any else 0

    _any: bool = True

    def n_clusters(self, alpha: float) -> int:
        """Number of clusters for alpha. O(log n)."""
        # Descending heights, negated to be ascending: how many lie above alpha.
        return self.n - int(torch.searchsorted(-self.heights, -_level(alpha)))

    def labels(self, alpha: float) -> Tensor:
        """(n,) int64 labels for alpha, numbered by first appearance. O(n log n)."""
        device = self.merges.device
        joined = self.merges[: self.n - self.n_clusters(alpha)]
        root = torch.arange(self.n, device=device)
        root[joined[:, 1]] = joined[:, 0]
        while True:
            above = root[root]
            if torch.equal(above, root):
                break
            root = above
        # A root is its cluster's smallest member, so roots in order are first appearances.
        number = (root == torch.arange(self.n, device=device)).cumsum(0) - 1
        return number[root]

    def __call__(self, alpha: float) -> Tensor:
        return self.labels(alpha)

    def alpha_for(self, n_clusters: int) -> float:
        """An alpha whose partition has ``n_clusters``, in the middle of all that have.

        With equal heights no alpha may give exactly that number; the next larger one is given.
        """
        if isinstance(n_clusters, bool) or not isinstance(n_clusters, numbers.Integral):
            raise _checks.fail_type("n_clusters", "an int", n_clusters)
        if not 1 <= n_clusters <= max(self.n, 1):
            raise _checks.fail_value("n_clusters", f"1 to {self.n}", n_clusters)
        h = self.heights
        if len(h) == 0:
            return 0.0
        slack = 0.01 * max(float(h[0] - h[-1]), 1e-3 * float(h.abs().max()), 1e-12)
        kept = self.n - n_clusters  # merges above alpha
        if kept == len(h):
            return float(h[-1]) - slack
        if kept == 0:
            return float(h[0]) + slack
        # Between neighbours in float64 the middle may round to the higher one: still not above.
        return float(h[kept - 1] + h[kept]) / 2

    def __repr__(self) -> str:
        if len(self.heights) == 0:
            return f"AlphaPath(n={self.n})"
        low, high = float(self.heights[-1]), float(self.heights[0])
        return f"AlphaPath(n={self.n}, 1 cluster below {low:.4g}, {self.n} from {high:.4g})"


def average_tree(
    x: Tensor, weights: Tensor | None, negative_dims: int, best: BestPartner, dtype: torch.dtype
) -> AlphaPath:
    """The whole tree of average linkage.

    Args:
        x: (n, d) features; with weights w, the mean of a cluster is sum f / sum w.
        best: the all-pairs primitive, ties by lowest column.
        dtype: of the means handed to ``best``; heights are float64 in any case.

    About log n rounds of reciprocal pairs, each an all-pairs pass over what is left; 4 to 5 times
    the work of the first pass in all, measured on Gaussian mixtures.
    """
    n, d = x.shape
    sums = x.to(torch.float64, copy=True)  # changed in place
    sizes = torch.ones(n, dtype=torch.float64, device=x.device)
    if weights is not None:
        sizes = weights.double()
    sign = signature(d, negative_dims, x.device)
    name = torch.arange(n, device=x.device)
    top = torch.full((n,), torch.inf, dtype=torch.float64, device=x.device)
    merges: list[Tensor] = []
    heights: list[Tensor] = []
    while len(name) > 1:
        means = sums / sizes.unsqueeze(1)
        value, partner = best(means.to(dtype))
        here = torch.arange(len(name), device=x.device)
        low = here[(partner[partner] == here) & (here < partner)]
        if len(low) == 0:
            # Unsymmetric rounding made a circle: the best pair alone, ties by lower indices.
            row = int(value.argmax())
            low = here[min(row, int(partner[row])) :][:1]
            high = here[max(row, int(partner[row])) :][:1]
        else:
            high = partner[low]
        height = (means[low] * means[high] * sign).sum(1)
        # Monotone in exact arithmetic; rounding must not cut a child off its parent.
        height = torch.minimum(height, torch.minimum(top[low], top[high]))
        merges.append(torch.stack([name[low], name[high]], 1))
        heights.append(height)
        sums[low] += sums[high]
        sizes = sizes.index_add(0, low, sizes[high])
        top[low] = height
        keep = torch.ones(len(name), dtype=torch.bool, device=x.device)
        keep[high] = False
        sums, sizes, top, name = sums[keep], sizes[keep], top[keep], name[keep]
    if not merges:
        none = torch.zeros(0, 2, dtype=torch.int64, device=x.device)
        return AlphaPath(none, sums.new_zeros(0), n > 0)
    every = torch.cat(heights)
    # Stable: a child stands before a parent of equal height.
    order = torch.argsort(every, descending=True, stable=True)
    return AlphaPath(torch.cat(merges)[order], every[order])
