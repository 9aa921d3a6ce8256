"""Optimal quantisers of a curve v(x) under a density of x: the numerics behind ``codebook``.

Two steps, the same for every kind of codebook. A dynamic programme over weighted atoms (Gauss-
Legendre nodes of the density, or measured samples) finds the global structure; for a continuous
density Newton's method then solves the optimality conditions with exact integrals, so that the
result is good to the last digits of float64 and does not depend on the grid.

Source of the dynamic programme: Novikov et al., ICML 2023. The optimality conditions, the zoom and
the stochastic-rounding cost are derived; each docstring states its formula.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Curve = Callable[[Array], Array]  # (m,) -> (m, C)
Cost = Callable[[Index, Index], Array]  # broadcast pairs of positions -> cost of the part between

_STOPS = 640  # positions of the coarse dynamic programme, at least 5 per part
_CELLS = 20_000
_GAUSS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = 0.5 + 0.5 * _GAUSS[0], 0.5 * _GAUSS[1]


def single(x: Array, scale: float) -> Array:
    """Nearest float32 values, as float64; what is noise against ``scale`` becomes a plain zero."""
    rounded = x.astype(np.float32).astype(np.float64)
    return np.where(np.abs(rounded) < 1e-9 * scale, 0.0, rounded)


# ---------------------------------------------------------------------------------------------
# A curve and a density on cells


class Field:
    """v(x) and a density w(x) on cells fine enough for 8-point Gauss-Legendre quadrature.

    Cells are bisected until whole and halves agree, so a jump of v that is not announced in
    ``edges`` ends up inside a cell of negligible width. With one component, extrema of v are
    cell edges too: v is monotone in every cell.

    Attributes:
        edges: (n + 1,) ascending.
        x, w, v: nodes (n, G), their masses (n, G), and values (n, G, C).
        left, right: (n, C) one-sided values at the ends of each cell.
    """

    def __init__(
        self, curve: Curve, weight: Curve | None, edges: Array, span: float, size: float
    ) -> None:
        """Args:
        edges: initial cells; jumps of w and known jumps of v must be among them.
        span: width of the region that matters; sets the smallest cell.
        size: largest |v| in that region; sets what is noise.
        """
        self.curve, self.weight, self.size = curve, weight, size + 1e-30
        self.tiny = 1e-12 * span
        self.edges = self._refine(np.unique(edges))
        self._evaluate()
        if self.v.shape[-1] == 1:
            self.edges = np.unique(np.append(self.edges, self._extrema()))
            self._evaluate()

    def _evaluate(self) -> None:
        a, b = self.edges[:-1], self.edges[1:]
        self.x, self.w, self.v = self.quadrature(a, b)
        inset = 1e-12 * (b - a)
        self.left, self.right = self.curve(a + inset), self.curve(b - inset)
        self.moments = self._moments(self.w, self.v)
        self.prefix = np.concatenate([np.zeros_like(self.moments[:1]), self.moments.cumsum(0)])

    @staticmethod
    def _moments(w: Array, v: Array) -> Array:
        """(n, 1 + C): int w and int w v over each cell."""
        return np.concatenate([w.sum(1, keepdims=True), (w[..., None] * v).sum(1)], axis=1)

    def quadrature(self, a: Array, b: Array) -> tuple[Array, Array, Array]:
        width = (b - a)[:, None]
        x = a[:, None] + width * _NODES
        v = self.curve(x.reshape(-1))
        v = v.reshape(*x.shape, v.shape[-1])
        if self.weight is None:
            return x, np.zeros_like(x), v
        return x, self.weight(x) * width * _WEIGHTS, v

    def _refine(self, edges: Array) -> Array:
        def integrals(a: Array, b: Array) -> tuple[Array, Array, Array]:
            _, w, v = self.quadrature(a, b)
            weighted = np.concatenate([self._moments(w, v), (w[..., None] * v * v).sum(1)], axis=1)
            return weighted, (v * _WEIGHTS[:, None]).sum(1), np.abs(v).max((1, 2))

        a, b = edges[:-1], edges[1:]
        done = [edges]
        total = 0
        while a.size:
            middle = 0.5 * (a + b)
            whole, mean, size = integrals(a, b)
            first, mean_first, _ = integrals(a, middle)
            second, mean_second, _ = integrals(middle, b)
            # Weighted integrals to 1e-14 of the totals, the curve itself to 1e-8 of its size.
            bound = np.maximum(size, self.size)[:, None]
            rough = (np.abs(first + second - whole) > 1e-14 * np.maximum(1, bound**2)).any(1)
            curved = np.abs(mean_first + mean_second - 2 * mean) > 1e-8 * bound
            wide = b - a > self._smallest(a, b)
            split = (rough | curved.any(1)) & wide
            total += int(split.sum())
            if total > _CELLS:
                raise ValueError(f"fn must have a derivative that {_CELLS} cells resolve, got more")
            done.append(middle[split])
            a = np.concatenate([a[split], middle[split]])
            b = np.concatenate([middle[split], b[split]])
        return np.unique(np.concatenate(done))

    def _extrema(self) -> Array:
        """Abscissae of extrema of v strictly inside a cell, by golden section."""
        x = np.concatenate([self.edges[:-1, None], self.x, self.edges[1:, None]], 1)
        v = np.concatenate([self.left[:, None, 0], self.v[..., 0], self.right[:, None, 0]], 1)
        step = np.diff(v)
        step[np.abs(step) < 1e-13 * self.size] = 0
        cell, k = np.nonzero(step[:, :-1] * step[:, 1:] < 0)
        a, b = x[cell, k], x[cell, k + 2]
        sign = np.sign(step[cell, k])
        ratio = 0.5 * (np.sqrt(5.0) - 1)
        for _ in range(60):
            p, q = b - ratio * (b - a), a + ratio * (b - a)
            up = sign * (self.curve(p)[:, 0] - self.curve(q)[:, 0]) > 0
            a, b = np.where(up, a, p), np.where(up, q, b)
        return 0.5 * (a + b)

    def cumulative(self, x: Array) -> Array:
        """(m, 1 + C): int of (w, w v) from the first edge to each x."""
        j = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, len(self.edges) - 2)
        _, w, v = self.quadrature(self.edges[j], x)
        return self.prefix[j] + self._moments(w, v)

    def _smallest(self, a: Array, b: Array) -> Array:
        """Width under which a cell is not split."""
        return np.maximum(self.tiny, 8 * np.spacing(np.maximum(-a, b)))

    def jumps(self) -> tuple[Array, Array, Array]:
        """Where v jumps (m,), ascending, and its values before and after (m, C)."""
        edge = np.abs(self.left[1:] - self.right[:-1]).max(1) > 1e-9 * self.size
        a, b = self.edges[:-1], self.edges[1:]
        cell = np.abs(self.right - self.left).max(1) > 1e-6 * self.size
        cell &= b - a <= self._smallest(a, b)
        at = np.concatenate([b[:-1][edge], a[cell]])
        before = np.concatenate([self.right[:-1][edge], self.left[cell]])
        after = np.concatenate([self.left[1:][edge], self.right[cell]])
        order = np.argsort(at)
        return at[order], before[order], after[order]

    def _roots(self, c: Array) -> tuple[Index, Index, Array]:
        """All (threshold k, cell j, x) with v(x) = c[k] inside cell j. Illinois method."""
        left, right = self.left[:, 0], self.right[:, 0]
        k, j = np.nonzero((left <= c[:, None]) != (right <= c[:, None]))
        a, b = self.edges[j], self.edges[j + 1]  # b: latest point, a: the end that brackets with it
        fa, fb = left[j] - c[k], right[j] - c[k]
        done = np.zeros(a.shape, dtype=bool)
        for _ in range(200):
            with np.errstate(invalid="ignore", divide="ignore"):
                x = (a * fb - b * fa) / (fb - fa)
            x = np.where((x > np.minimum(a, b)) & (x < np.maximum(a, b)), x, 0.5 * (a + b))
            fx = self.curve(x)[:, 0] - c[k]
            small = 1e-15 * (np.abs(x) + 1e-3)
            stop = (fx == 0) | (np.abs(x - b) < small) | (np.abs(x - a) < small)
            same = (fx <= 0) == (fb <= 0)
            # An end that stays twice has its value halved, so that the bracket closes.
            fa = np.where(same, 0.5 * fa, fb)
            a = np.where(same, a, b)
            b, fb = np.where(done, b, x), np.where(done, fb, fx)
            done |= stop
            if done.all():
                break
        return k, j, b

    def crossings(self, c: Array) -> Array:
        """Every x where v passes one of the thresholds c, jumps included; ascending."""
        jump = ((self.right[:-1] <= c) != (self.left[1:] <= c)).any(1)
        return np.unique(np.concatenate([self.edges[1:-1][jump], self._roots(c)[2]]))

    def below(self, c: Array) -> Array:
        """(m, 2): int of (w, w v) over {x: v(x) <= c}, one component."""
        left, right = self.left[:, 0] <= c[:, None], self.right[:, 0] <= c[:, None]
        out = (left & right).astype(np.float64) @ self.moments  # [m, 2]
        k, j, x = self._roots(c)
        part = self._moments(*self.quadrature(self.edges[j], x)[1:])
        np.add.at(out, k, np.where(left[k, j][:, None], part, self.moments[j] - part))
        return out

    def split(self, at: Array) -> tuple[Array, Array, Array]:
        """Quadrature (x, w, v) flattened to (N,), (N,), (N, C), with edges at the points ``at``."""
        edges = np.unique(np.append(self.edges, at[np.isfinite(at)]))
        edges = edges[(edges >= self.edges[0]) & (edges <= self.edges[-1])]
        x, w, v = self.quadrature(edges[:-1], edges[1:])
        return x.reshape(-1), w.reshape(-1), v.reshape(-1, v.shape[-1])


# ---------------------------------------------------------------------------------------------
# Dynamic programme


def merge_ties(key: Array, w: Array, v: Array) -> tuple[Array, Array, Array]:
    """Atoms sorted by key (n,), equal keys made one atom; v (n, C) must agree where keys do."""
    order = np.argsort(key, kind="stable")
    key, w, v = key[order], w[order], v[order]
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[start], np.add.reduceat(w, start), v[start]


def variance_cost(w: Array, v: Array) -> Cost:
    """T(i, j) = sum w |v|^2 - |sum w v|^2 / sum w over atoms i .. j-1, from prefix sums."""
    v = v - (w @ v) / w.sum()  # less cancellation
    zero = np.zeros((1, v.shape[1]))
    p0 = np.concatenate([[0.0], w.cumsum()])
    p1 = np.concatenate([zero, (w[:, None] * v).cumsum(0)])
    p2 = np.concatenate([[0.0], (w * (v * v).sum(1)).cumsum()])

    def cost(i: Index, j: Index) -> Array:
        mass = p0[j] - p0[i]
        square = np.zeros(mass.shape)
        for c in range(p1.shape[1]):
            square += (p1[j, c] - p1[i, c]) ** 2
        return p2[j] - p2[i] - np.where(mass > 0, square / np.where(mass > 0, mass, 1), 0)

    return cost


def rounding_cost(w: Array, v: Array, low: float, high: float) -> Cost:
    """Stochastic rounding between levels a = l(i) and b = l(j): sum w (b - v)(v - a).

    Position 0 is the level ``low``, position n + 1 is ``high``, position i the value of atom i - 1;
    the sum is -ab sum w + (a + b) sum w v - sum w v^2.
    """
    shift = float(w @ v) / float(w.sum())
    level = np.concatenate([[low], v, [high]]) - shift
    w = np.concatenate([[0.0], w, [0.0]])
    p0, p1, p2 = w.cumsum(), (w * level).cumsum(), (w * level**2).cumsum()

    def cost(i: Index, j: Index) -> Array:
        a, b = level[i], level[j]
        return -a * b * (p0[j] - p0[i]) + (a + b) * (p1[j] - p1[i]) - (p2[j] - p2[i])

    return cost


def stops(w: Array, v: Array, parts: int) -> Index:
    """Positions 0 .. n where a coarse cut may lie.

    Spread by the asymptotically optimal density of borders, (w |dv|^2)^(1/3) (Panter and Dite),
    mixed with equal mass and equal count so that nothing is left empty.
    """
    n = len(w)
    count = max(_STOPS, 5 * parts)
    if n <= count:
        return np.arange(n + 1)
    step = np.sqrt((np.diff(v, axis=0, prepend=v[:1]) ** 2).sum(1))
    total = np.zeros(n + 1)
    for share, density in ((0.6, np.cbrt(w * step**2)), (0.3, w), (0.1, np.ones(n))):
        total[1:] += share * density.cumsum() / max(density.sum(), 1e-300)
    inner = np.searchsorted(total, np.linspace(0, total[-1], count)[1:-1])
    return np.unique(np.concatenate([[0], inner, [n]]))


def partition(cost: Cost, positions: Index, parts: int) -> Index:
    """Cut positions[0] .. positions[-1] into ``parts`` pieces of least total cost.

    D(j, k) = min_{i <= j} D(i, k - 1) + T(i, j) over the given positions, O(n^2 parts); then the
    same recursion over 17 candidates around every cut, in windows that shrink until they are single
    positions, O(17^2 parts) each.

    Returns:
        (parts + 1,) ascending positions, ends included; a piece may be empty.
    """
    n = len(positions)
    table = cost(positions[None, :], positions[:, None])  # [j, i]
    table[np.triu_indices(n, 1)] = np.inf
    best = table[:, 0]
    choice = np.zeros((parts, n), dtype=np.int64)
    for k in range(1, parts):
        total = table + best
        choice[k] = total.argmin(1)
        best = total[np.arange(n), choice[k]]
    at = np.zeros(parts + 1, dtype=np.int64)
    at[parts] = n - 1
    for k in range(parts - 1, 0, -1):
        at[k] = choice[k, at[k + 1]]
    window = np.maximum(
        positions[np.minimum(at + 1, n - 1)] - positions[at],
        positions[at] - positions[np.maximum(at - 1, 0)],
    )
    return _zoom(cost, positions[at], window)


def _zoom(cost: Cost, cuts: Index, window: Index) -> Index:
    parts, first, last = len(cuts) - 1, cuts[0], cuts[-1]
    grid = np.linspace(-1, 1, 17)
    window = window[1:-1, None]
    for _ in range(400):
        if parts == 1:
            break
        offset = np.rint(window * grid).astype(np.int64)
        middle = np.clip(cuts[1:-1, None] + offset, first, last)  # [parts - 1, 17]
        between = cost(middle[:-1, :, None], middle[1:, None, :])
        between[middle[:-1, :, None] > middle[1:, None, :]] = np.inf
        best = cost(np.full_like(middle[0], first), middle[0])
        choice = np.zeros((parts, len(grid)), dtype=np.int64)
        for k in range(1, parts - 1):
            total = best[:, None] + between[k - 1]
            choice[k] = total.argmin(0)
            best = total[choice[k], np.arange(len(grid))]
        pick = int((best + cost(middle[-1], np.full_like(middle[-1], last))).argmin())
        moved = cuts.copy()
        for k in range(parts - 2, -1, -1):
            moved[k + 1] = middle[k, pick]
            pick = int(choice[k, pick])
        improved = _total(cost, moved) < _total(cost, cuts)
        if improved:
            cuts = moved
        elif window.max() <= 8:
            break
        # Windows of 8 hold every position; smaller ones would only repeat the work.
        window = np.maximum(window // 3, 8)
    return cuts


def _total(cost: Cost, cuts: Index) -> float:
    return float(cost(cuts[:-1], cuts[1:]).sum())


# ---------------------------------------------------------------------------------------------
# Newton's method on the optimality conditions


def newton(residual: Curve, start: Array) -> Array:
    """Solve residual(u) = 0 for ascending u, where residual i depends on u[i-1 .. i+1] only.

    The tridiagonal Jacobian comes from three finite differences. Steps are halved until the
    residual falls; the best u seen is returned, at worst the start.
    """
    u, r = start, residual(start)
    m = len(u)
    for _ in range(50):
        if m == 0 or np.abs(r).max() < 1e-16:
            break
        gap = np.diff(u, prepend=u[0] - 1, append=u[-1] + 1)
        h = 1e-6 * np.minimum(gap[:-1], gap[1:])
        if h.min() <= 0:
            break
        jacobian = np.zeros((m, m))
        for colour in range(3):
            i = np.arange(colour, m, 3)
            probe = u.copy()
            probe[i] += h[i]
            change = residual(probe) - r
            for offset in (-1, 0, 1):
                row = i + offset
                inside = (row >= 0) & (row < m)
                jacobian[row[inside], i[inside]] = change[row[inside]] / h[i[inside]]
        if not np.isfinite(jacobian).all():
            break
        step = np.linalg.lstsq(jacobian, -r, rcond=1e-12)[0]
        for halving in range(12):
            candidate = u + 0.5**halving * step
            if (np.diff(candidate) <= 0).any():
                continue
            new = residual(candidate)
            if np.abs(new).max() < np.abs(r).max():
                u, r = candidate, new
                break
        else:
            break
    return u


def interval_borders(field: Field, cuts: Index, x: Array) -> Array:
    """Borders from cuts between nodes x (n,), refined to |v(s) - y_i| = |v(s) - y_{i+1}|.

    That is the zero of the cost's gradient w(s)(|v - y_i|^2 - |v - y_{i+1}|^2), y the conditional
    means (derived); for one component it reads v(s) = (y_i + y_{i+1}) / 2. A border at a jump of v
    that separates the two levels stays there.
    """
    inner = np.unique(cuts[1:-1])
    inner = inner[(inner > 0) & (inner < len(x))]
    a, b = x[inner - 1], x[inner]
    s = 0.5 * (a + b)
    fixed = np.zeros(s.shape, dtype=bool)
    y = means(field, s)
    step, middle = y[1:] - y[:-1], 0.5 * (y[1:] + y[:-1])
    for at, before, after in zip(*field.jumps(), strict=True):
        here = (a - 10 * field.tiny <= at) & (at <= b + 10 * field.tiny)
        here &= ((before - middle) * step).sum(1) * ((after - middle) * step).sum(1) < 0
        s[here], fixed = at, fixed | here
    s, first = np.unique(s, return_index=True)
    free = ~fixed[first]

    def residual(u: Array) -> Array:
        full = s.copy()
        full[free] = u
        if (np.diff(full) <= 0).any():
            return np.full(u.shape, np.inf)
        y = means(field, full)
        step = y[1:] - y[:-1]
        length = np.sqrt((step**2).sum(1)) + 1e-300
        value = field.curve(full)
        return (((value - 0.5 * (y[1:] + y[:-1])) * step).sum(1) / length)[free]

    # Fixed borders decouple the free ones on their two sides: the Jacobian stays tridiagonal.
    refined = s.copy()
    refined[free] = newton(residual, s[free])
    return refined if _explained(field, refined) >= _explained(field, s) - 1e-15 else s


def _parts(field: Field, s: Array) -> Array:
    """(m + 1, 1 + C) int of (w, w v) between borders s (m,)."""
    total = np.concatenate([field.prefix[:1], field.cumulative(s), field.prefix[-1:]])
    return np.diff(total, axis=0)


def means(field: Field, s: Array) -> Array:
    """(m + 1, C) conditional means of v between borders s (m,)."""
    part = _parts(field, s)
    return part[:, 1:] / np.maximum(part[:, :1], 1e-300)


def _explained(field: Field, s: Array) -> float:
    """E|v|^2 less the cost of borders s."""
    part = _parts(field, s)
    return float((part[:, 1:] ** 2 / np.maximum(part[:, :1], 1e-300)).sum())


def value_levels(field: Field, levels: Array) -> Array:
    """Lloyd-Max levels (K,) of V = v(x) near the given ones: c_i = (l_i + l_{i+1}) / 2 with
    l_i = E[V | c_{i-1} < V <= c_i], solved for the thresholds c."""

    def conditional(c: Array) -> Array:
        total = np.concatenate([np.zeros((1, 2)), field.below(c), field.prefix[-1:]])
        part = np.diff(total, axis=0)
        return part[:, 1] / np.maximum(part[:, 0], 1e-300)

    def residual(c: Array) -> Array:
        level = conditional(c)
        return c - 0.5 * (level[1:] + level[:-1])

    return conditional(newton(residual, 0.5 * (levels[1:] + levels[:-1])))


def rounding_levels(field: Field, levels: Array, held: npt.NDArray[np.bool_]) -> Array:
    """Levels (K,) of least stochastic-rounding variance near the given ones, ends fixed.

    Derivative of the cost in l_i (derived): int_{l_{i-1}}^{l_i} (v - l_{i-1}) = int_{l_i}^{l_{i+1}}
    (l_{i+1} - v) under the distribution of V. Levels marked ``held`` lie on an atom of V, where the
    derivative jumps through zero, and stay.
    """
    free = ~held
    free[[0, -1]] = False
    total = field.prefix[-1]

    def residual(u: Array) -> Array:
        level = levels.copy()
        level[free] = u
        if (np.diff(level) <= 0).any():
            return np.full(u.shape, np.inf)
        below = np.concatenate([np.zeros((1, 2)), field.below(level[1:-1]), total[None]])
        mass, first = np.diff(below, axis=0).T  # of V between adjacent levels
        gradient = (first - level[:-1] * mass)[:-1] - (level[1:] * mass - first)[1:]
        return gradient[free[1:-1]]

    refined = levels.copy()
    refined[free] = newton(residual, levels[free])
    return refined
