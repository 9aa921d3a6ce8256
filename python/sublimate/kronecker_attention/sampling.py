"""Rows evaluated exactly, and what the polynomial method makes of them: the sampled estimate.

Errors grow with a power of the logits and average over the tuples, so that a few rows may hold most
of all errors: three quarters of the rows are those of the largest root mean square logit, to a
power, by the root of the number of tuples; the rest are evenly spaced in that order and stand for
all others. Of 2,500 problems of six laws, with 17 to 100 rows, 98 % were within a factor of 3 of
the truth; of rows evenly spaced by position, 89 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import coefficients as polynomials
from . import reference

Masks = Sequence[Tensor | None]
#: Logits of one piece of a sampled row, over all heads: 2 MiB, which stay in a cache.
CHUNK = 2**18
#: Power of a row's logits by which rows are ranked: that of degree 2, for every degree.
_POWER = 3


def row_tuples(n: int, lengths: Sequence[int], causal: bool, window: Sequence[int]) -> Tensor:
    """(N,) float64: how many tuples each row reads, without regard to padding masks."""
    end = torch.arange(1, n + 1, dtype=torch.float64)
    total = torch.ones(n, dtype=torch.float64)
    for m, w in zip(lengths, reference.window_widths(window, len(lengths)), strict=True):
        if not causal and not w:
            total *= m
            continue
        first = (end - w).clamp(0, m) if w else 0
        total *= end.clamp_max(m) - first
    return total


class Sample:
    """Exact output of sampled rows, against which any polynomial can be held.

    Attributes:
        least: norm of these rows' output: no more than the whole output's.
    """

    @torch.no_grad()
    def __init__(
        self,
        q: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        masks: Masks | None,
        *,
        scale: float,
        causal: bool,
        window: Sequence[int],
        rows: int,
    ) -> None:
        self._q, self._keys, self._values, self._masks = reference.prepare(
            q.double(), keys, values, masks
        )
        self._scale, self._causal = scale, causal
        self._widths = reference.window_widths(window, len(keys))
        b, hkv, g, n, _ = self._q.shape
        count = min(rows, n)
        self._rows = self._chosen(count).reshape(b, hkv, g, count)
        top = count if count == n else 3 * count // 4
        self._stand_for = [1.0] * top + [(n - top) / max(1, count - top)] * (count - top)
        self._truth = []
        total = least = self._q.new_zeros(())
        for sample, stands in enumerate(self._stand_for):
            truth = self._exact(sample)
            self._truth.append(truth)
            size = truth.square().sum()
            total, least = total + size * stands, least + size
        self._total, self.least = float(total), math.sqrt(float(least))

    def _chosen(self, count: int) -> Tensor:
        """Positions (B, Hkv, G, count) of the rows."""
        n = self._q.shape[3]
        product = self._q.new_ones(())
        for k, mask in zip(self._keys, self._masks, strict=True):
            product = product * polynomials.moments(k, mask)
        square = ((self._q @ product.unsqueeze(2)) * self._q).sum(-1) * self._scale**2
        # Logarithms: powers of tiny logits would all be 0, and their order lost.
        score = _POWER * square.clamp_min(0).log()
        for k, v, mask, w in zip(self._keys, self._values, self._masks, self._widths, strict=True):
            score = score + self._local(k, v, mask, w).unsqueeze(2)
        order = score.sort(dim=3, descending=True, stable=True).indices
        top = count if count == n else 3 * count // 4
        left, rest = n - top, count - top
        at = [*range(top), *(top + ((2 * i + 1) * left) // (2 * rest) for i in range(rest))]
        return order[..., at]

    def _local(self, k: Tensor, v: Tensor, mask: Tensor | None, width: int) -> Tensor:
        """What a row's share of a key set adds to its score, (B, Hkv, N) or smaller: by how much
        the keys that it reads are longer than all, the size of their values, and their number."""
        ones = k.new_ones(k.shape[:3])
        read = ones if mask is None else ones * mask[:, None]
        sizes = torch.stack((read, k.square().sum(-1), v.square().sum(-1)))
        every = sizes.sum(-1, keepdim=True)
        if self._causal or width:
            end = torch.arange(1, self._q.shape[3] + 1, device=k.device)
            start = (end - width).clamp(0, k.shape[2]) if width else torch.zeros_like(end)
            sums = torch.nn.functional.pad(sizes.cumsum(-1), (1, 0))
            here = sums[..., end.clamp_max(k.shape[2])] - sums[..., start]
        else:
            here = every
        number, key, value = here.clamp_min(0)
        ratio = (key / number) / (every[1] / every[0])
        found = _POWER * ratio.log() + (value / number).log() - number.log()
        # Rows that read nothing are 0 exactly; a set of zeros says nothing.
        found = torch.where(found.isnan(), torch.zeros_like(found), found)
        return torch.where(number > 0, found, torch.full_like(found, -math.inf))

    def _pieces(self, sample: int) -> Iterator[tuple[Tensor, list[Tensor | None], list[Tensor]]]:
        """(logits, which of them count by each set, values) of one row of every head."""
        b, hkv, g, _, d = self._q.shape
        at = self._rows[..., sample]
        row = self._q.gather(3, at[..., None, None].expand(-1, -1, -1, 1, d)) * self._scale
        keys, values, seen = [], [], []
        for k, v, mask, w in zip(self._keys, self._values, self._masks, self._widths, strict=True):
            begin, end = 0, k.shape[2]
            ordered = (self._causal or w > 0) and at.numel() > 0
            if ordered:
                begin = max(0, int(at.min()) - w + 1) if w else 0
                end = max(begin, min(end, int(at.max()) + 1))
            found = None if mask is None else mask[:, None, None, begin:end]
            if ordered:
                i, j = at[..., None], torch.arange(begin, end, device=at.device)
                near = (j <= i) & (j > i - w) if w else j <= i
                found = near if found is None else found & near
            keys.append(k[:, :, begin:end])
            values.append(v[:, :, begin:end])
            seen.append(found)
        step = max(1, CHUNK // max(1, b * hkv * g * math.prod(k.shape[2] for k in keys[1:])))
        for start in range(0, keys[0].shape[2], step):
            piece = slice(start, start + step)
            some = [None if seen[0] is None else seen[0][..., piece], *seen[1:]]
            parts = [values[0][:, :, piece], *values[1:]]
            yield reference.fold(row, [keys[0][:, :, piece], *keys[1:]]), some, parts

    def _exact(self, sample: int) -> Tensor:
        b, hkv, g = self._q.shape[:3]
        numerator = self._q.new_zeros(b, hkv, g, 1, self._values[0].shape[-1])
        denominator = self._q.new_zeros(b, hkv, g, 1)
        top = self._q.new_full((b, hkv, g, 1), -1e300)
        for logits, seen, values in self._pieces(sample):
            if logits.numel() == 0:
                continue
            logits = _hide(logits, seen, -math.inf)
            highest = torch.maximum(top, logits.flatten(4).amax(-1))
            old = torch.exp(top - highest)
            shape = (*highest.shape, *(1,) * len(self._keys))
            weight = torch.exp(logits - highest.reshape(shape))
            numerator = numerator * old.unsqueeze(-1) + reference.contract(weight, values)
            denominator = denominator * old + weight.flatten(4).sum(-1)
            top = highest
        return reference.divide(numerator, denominator, torch.float64)

    @torch.no_grad()
    def error(self, c: Tensor) -> float:
        """Norm of the polynomial's error by the norm of the output, c (B, Hq, g + 1)."""
        b, hkv, g = self._q.shape[:3]
        c = c.double().reshape(b, hkv, g, 1, *(1,) * len(self._keys), c.shape[-1])
        error = self._q.new_zeros(())
        for sample, (truth, stands) in enumerate(zip(self._truth, self._stand_for, strict=True)):
            numerator, denominator = torch.zeros_like(truth), torch.zeros_like(truth[..., 0])
            for logits, seen, values in self._pieces(sample):
                weight = c[..., -1].expand_as(logits).clone()
                for j in reversed(range(c.shape[-1] - 1)):
                    weight = weight.mul_(logits).add_(c[..., j])
                weight = _hide(weight, seen, 0.0)
                numerator += reference.contract(weight, values)
                denominator += weight.flatten(4).sum(-1)
            near = reference.divide(numerator, denominator, torch.float64)
            error = error + (near - truth).square().sum() * stands
        return math.sqrt(float(error) / self._total) if self._total > 0 else 0.0


def _hide(x: Tensor, seen: Sequence[Tensor | None], other: float) -> Tensor:
    """x (B, Hkv, G, 1, M_1, ...) with ``other`` where a member of a tuple is not seen."""
    for dim, a in enumerate(seen):
        if a is not None:
            shape = [*a.shape[:3], *(1,) * (x.dim() - 3)]
            shape[4 + dim] = a.shape[3]
            x = torch.where(a.reshape(shape), x, other)
    return x
