"""The truth for randomized linear layers: plain PyTorch, written to be read.

A sketch is a random N x k matrix S with E[S S^T] = I, a pure function of (seed, N, k, name). A
linear layer keeps S^T x (k rows) instead of x (N rows) and estimates dW = dy^T x by
(S^T dy)^T (S^T x). The compiled backends are held to these functions; these are held to closed
forms.

Source: Bershatsky, Mikhalev, Katrutsa, Gusak, Merkulov, Oseledets, "Memory-Efficient
Backpropagation through Large Linear Layers" (arXiv 2201.13195), and for the sketches the sources
named in this folder's README.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _normal, _permutation, _philox
from .._autograd import refuse_double_backward, without_autocast
from .._dtypes import accumulator

#: Sketches that do not look at the data; S is a function of (seed, N, k).
OBLIVIOUS = ("gaussian", "rademacher", "srht", "dct", "countsketch", "rows")
#: Column-row samplers: k rows drawn by probabilities, kept with their int32 indices.
SAMPLERS = ("crs", "wta")
SKETCHES = OBLIVIOUS + SAMPLERS

#: Streams of the generator (``_philox``); permutations and normal numbers have their own.
SIGNS, RADEMACHER, DRAWS = 1, 4, 5
BLOCK = 1024  # largest number of rows that one transform of srht and dct mixes


def rows_kept(n: int, ratio: float) -> int:
    """k for a ratio in (0, 1]: at least one row of n > 0."""
    return min(n, max(1, int(ratio * n + 0.5))) if n > 0 else 0


def as_rows(x: Tensor) -> Tensor:
    """(..., F) as (N, F), F = 0 too."""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def blocks(n: int) -> tuple[int, int]:
    """(nb, chunk): srht and dct mix n > 0 rows in nb blocks of chunk, the last may be short."""
    nb = (n + BLOCK - 1) // BLOCK
    return nb, (n + nb - 1) // nb


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    m = 1
    while m < n:  # inequalities only: under torch.compile n may be symbolic
        m *= 2
    return m


def transformed_rows(sketch: str, n: int) -> int:
    """Rows among which outputs are chosen: Np for srht and dct (with padding), else N."""
    if n == 0 or sketch not in ("srht", "dct"):
        return n
    nb, chunk = blocks(n)
    return nb * (power_of_two(chunk) if sketch == "srht" else chunk)


# ---------------------------------------------------------------------------------- transforms


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale * H x along the last dimension; H[i, j] = (-1)**popcount(i & j), Sylvester's order.

    The last dimension (length L) is padded with zeros to P, the next power of two; the result has
    length P. O(P log P) per row. fp32 (fp64 for fp64) inside, rounded once.
    """
    padded = power_of_two(x.shape[-1])
    y = F.pad(x.to(accumulator(x.dtype)), (0, padded - x.shape[-1]))
    half = 1
    while half < padded:
        pair = y.reshape(*x.shape[:-1], padded // (2 * half), 2, half)
        low, high = pair[..., 0, :], pair[..., 1, :]
        y = torch.stack((low + high, low - high), dim=-2)
        half *= 2
    return (y.reshape(*x.shape[:-1], padded) * scale).to(x.dtype)


def dct_matrix(m: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix, (m, m): row r is frequency r."""
    place = torch.arange(m, device=like.device)
    turns = torch.outer(place, 2 * place + 1) % (4 * m)  # in integers: large angles lose digits
    matrix = torch.cos(turns.to(torch.float64) * (math.pi / (2 * m))) * math.sqrt(2 / m)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(like.dtype)


# ------------------------------------------------------------------------------- random pieces


def signs(seed: int | Tensor, n: int, like: Tensor) -> Tensor:
    """d, (n,) of +1 and -1 in the dtype of ``like``: bit i & 31 of word i >> 5 set is -1."""
    word = _philox.words(seed, (n + 31) // 32, like.device, stream=SIGNS)
    return _unpack_signs(word, like).reshape(-1)[:n]


def _unpack_signs(word: Tensor, like: Tensor) -> Tensor:
    bit = (word.unsqueeze(-1) >> torch.arange(32, device=word.device)) & 1
    return (1 - 2 * bit).to(like.dtype)


def uniforms(seed: int | Tensor, count: int, device: torch.device) -> Tensor:
    """(count,) float64 in (0, 1): (word + 1/2) / 2**32 of the stream of draws."""
    word = _philox.words(seed, count, device, stream=DRAWS)
    return (word.to(torch.float64) + 0.5) * 2.0**-32


def _dense(sketch: str, n: int, k: int, seed: int | Tensor, like: Tensor) -> Tensor:
    """S of the dense sketches, (n, k) in the dtype of ``like``."""
    if sketch == "gaussian":
        width = (k + 3) // 4 * 4
        entries = _normal.normal(seed, n * width, device=like.device).to(like.dtype)
    else:
        width = (k + 127) // 128 * 128
        word = _philox.words(seed, n * width // 32, like.device, stream=RADEMACHER)
        entries = _unpack_signs(word, like)
    return entries.reshape(n, width)[:, :k] / math.sqrt(k)


# -------------------------------------------------------------------------------- S^T x and S


def project(x: Tensor, sketch: str, k: int, seed: int | Tensor) -> Tensor:
    """S^T x for a sketch of ``OBLIVIOUS``; differentiable, as it is linear in x.

    Args:
        x: (N, I), floating.
        sketch: a name in ``OBLIVIOUS``.
        k: rows of the result.
        seed: int64 >= 0, an int or a one-element tensor.

    Returns:
        (k, I) in x's dtype: summed in fp32 (fp64 for fp64) and rounded once.
    """
    n, wide = x.shape[0], x.to(accumulator(x.dtype))
    if n == 0 or k == 0:
        return x.new_zeros(k, *x.shape[1:]) + x.sum(0)  # keeps the graph: zeros of x's
    if sketch in ("gaussian", "rademacher"):
        return (_dense(sketch, n, k, seed, wide).T @ wide).to(x.dtype)
    if sketch == "countsketch":
        bucket = _permutation.permutation(seed, n, x.device) % k
        signed = signs(seed, n, wide).unsqueeze(-1) * wide
        return wide.new_zeros(k, x.shape[1]).index_add(0, bucket, signed).to(x.dtype)
    if sketch == "srht":
        nb, chunk = blocks(n)
        m = power_of_two(chunk)
        blocked = _in_blocks(signs(seed, n, wide).unsqueeze(-1) * wide, nb, chunk)
        wide = hadamard_transform(blocked.transpose(1, 2), m**-0.5).transpose(1, 2)
        wide = wide.reshape(nb * m, x.shape[1])
    elif sketch == "dct":
        nb, chunk = blocks(n)
        blocked = _in_blocks(signs(seed, n, wide).unsqueeze(-1) * wide, nb, chunk)
        wide = (dct_matrix(chunk, wide) @ blocked).reshape(nb * chunk, x.shape[1])
    total = transformed_rows(sketch, n)
    chosen = _permutation.permutation(seed, total, x.device)[:k]
    kept = min(k, total)
    out = wide[chosen] * math.sqrt(total / kept)
    return F.pad(out, (0, 0, 0, k - kept)).to(x.dtype)


def expand(g: Tensor, sketch: str, n: int, seed: int | Tensor) -> Tensor:
    """S g, the adjoint of ``project``: (k, I) -> (n, I) in g's dtype."""
    k, wide = g.shape[0], g.to(accumulator(g.dtype))
    if n == 0 or k == 0:
        return g.new_zeros(n, *g.shape[1:]) + g.sum(0)
    if sketch in ("gaussian", "rademacher"):
        return (_dense(sketch, n, k, seed, wide) @ wide).to(g.dtype)
    if sketch == "countsketch":
        bucket = _permutation.permutation(seed, n, g.device) % k
        return (signs(seed, n, wide).unsqueeze(-1) * wide[bucket]).to(g.dtype)
    total = transformed_rows(sketch, n)
    kept = min(k, total)
    chosen = _permutation.permutation(seed, total, g.device)[:kept]
    out = wide.new_zeros(total, g.shape[1]).index_add(0, chosen, wide[:kept])
    out = out * math.sqrt(total / kept)
    if sketch != "rows":
        nb, chunk = blocks(n)
        m = total // nb
        out = out.reshape(nb, m, g.shape[1])
        if sketch == "srht":  # H is symmetric
            out = hadamard_transform(out.transpose(1, 2), m**-0.5).transpose(1, 2)
        else:
            out = dct_matrix(chunk, wide).T @ out
        out = out[:, :chunk].reshape(nb * chunk, g.shape[1])[:n]
        out = signs(seed, n, wide).unsqueeze(-1) * out
    return out.to(g.dtype)


def _in_blocks(x: Tensor, nb: int, chunk: int) -> Tensor:
    """(N, I) -> (nb, chunk, I), zero rows at the end."""
    return F.pad(x, (0, 0, 0, nb * chunk - x.shape[0])).reshape(nb, chunk, x.shape[1])


def gather(x: Tensor, index: Tensor, scale: Tensor | None = None) -> Tensor:
    """out[j] = scale[j] * x[index[j]], (k, I) in x's dtype.

    Args:
        x: (N, I). index: (k,), int32, in [0, N). scale: (k,) fp32 (fp64 for fp64) or None for 1.
    """
    rows = x[index.long()]
    if scale is None:
        return rows
    acc = accumulator(x.dtype)
    return (rows.to(acc) * scale.to(acc).unsqueeze(-1)).to(x.dtype)


def row_probabilities(x: Tensor) -> Tensor:
    """(N,) float64, proportional to the norms of x's rows; uniform if all are zero."""
    norm = torch.linalg.vector_norm(x, dim=1, dtype=accumulator(x.dtype)).to(torch.float64)
    total = norm.sum()
    return torch.where(total == 0, torch.full_like(norm, 1 / max(1, x.shape[0])), norm / total)


def sample(sketch: str, probabilities: Tensor, k: int, seed: int | Tensor) -> tuple[Tensor, Tensor]:
    """Rows that a sampler takes, and the squared entry of S for each.

    crs: k independent draws by inverse CDF; squared scale 1 / (k p). wta: the c most probable rows
    with scale 1 and k - c draws from the rest, c in 0 .. k - 1 minimising (1 - P_c)**2 / (k - c),
    P_c being the probability of the c taken. Source: Liu et al., "Winner-Take-All Column Row
    Sampling for Memory Efficient Adaptation of Language Model", NeurIPS 2023.

    Args:
        sketch: "crs" or "wta".
        probabilities: (N,) float64, summing to 1.
        k: rows to take.

    Returns:
        index (k,) int32 and square (k,) float64. O(N log N) for wta, O(N + k log N) for crs.
    """
    n, p = probabilities.shape[0], probabilities
    device = p.device
    if n == 0 or k == 0:
        return torch.zeros(k, dtype=torch.int32, device=device), p.new_zeros(k)
    u = uniforms(seed, k, device)
    if sketch == "crs":
        index = _inverse_cdf(p, u)
        return index.to(torch.int32), 1 / (k * p[index])
    taken, order = torch.sort(p, descending=True, stable=True)
    c, share = winners(taken, k)
    # The first c outputs are the winners; u_j belongs to output j, also there, and is not used.
    place = torch.arange(k, device=device)
    winner = place < c
    remaining = torch.where(torch.arange(n, device=device) < c, torch.zeros_like(taken), taken)
    drawn = _inverse_cdf(remaining, u)
    at = torch.where(winner, place.clamp(max=n - 1), drawn)
    square = share / ((k - c) * taken[at])
    return order[at].to(torch.int32), torch.where(winner, torch.ones_like(square), square)


def winners(taken: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many of the rows, by descending probability, wta takes for certain; what is left.

    Args:
        taken: (N,) float64, descending, N > 0.

    Returns:
        c, int64, and the sum of all probabilities but the c first.
    """
    n = taken.shape[0]
    # Sums from the small end: what is left keeps its digits.
    left = torch.cat((taken.flip(0).cumsum(0).flip(0), taken.new_zeros(1)))  # [N + 1]
    count = torch.arange(k, device=taken.device)
    rest = left[count.clamp(max=n)]
    c = (rest**2 / (k - count)).argmin()  # the first of equals
    return c, rest.gather(0, c.reshape(1)).reshape(())


def _inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """Index of the weight in whose share of the sum each u in (0, 1) falls; never a zero weight."""
    cdf = weights.cumsum(0)
    index = torch.searchsorted(cdf, u * cdf[-1], right=True)
    # Rounding may carry u * total to the end: the last weight that is not zero is meant.
    last = (weights > 0).to(torch.int64).mul(torch.arange(len(weights), device=u.device)).max()
    return index.minimum(last)


def sketch_matrix(
    sketch: str, n: int, k: int, seed: int | Tensor, probabilities: Tensor | None = None
) -> Tensor:
    """S itself, (n, k) float64, for tests; samplers need ``probabilities``."""
    eye = torch.eye(n, dtype=torch.float64)
    if sketch in OBLIVIOUS:
        return project(eye, sketch, k, seed).T
    assert probabilities is not None
    index, square = sample(sketch, probabilities, k, seed)
    return gather(eye, index, square.sqrt()).T


# ------------------------------------------------------------------------------ the linear layer


NO_SECOND = (
    "sublimate.randomized_linear: no second derivative. The gradient of the weight is a random "
    "estimate from a sketch of the input, and what it would need to be differentiated is not kept; "
    "use torch.nn.functional.linear where second derivatives matter."
)


class SketchedLinear(torch.autograd.Function):
    """y = x W^T + b exactly; dW = (S^T dy)^T (S^T x), dx and db exact.

    Inputs: x (..., I); weight (O, I); bias (O,) or None; kept = S^T x (k, I), for samplers with
    squared entries of S; index (k,) for samplers, else None; seed for the others, else None;
    sketch and k. x and kept have the dtype in which to compute; weight and bias may have another.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        x, weight, bias, kept, index, seed, sketch: str, k: int
    ) -> Tensor:
        return exact_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        keep_for_backward(ctx, *inputs)

    @staticmethod
    @refuse_double_backward(NO_SECOND)
    def backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
        def sketched(rows: Tensor, index: Tensor | None, seed: Tensor | None) -> Tensor:
            if index is not None:
                return gather(rows, index)
            assert seed is not None
            return project(rows, ctx.sketch, ctx.k, seed)

        return gradients(ctx, dy, sketched)


def exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in x's dtype, whatever that of the parameters."""
    with without_autocast(x.device):
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def keep_for_backward(  # type: ignore[no-untyped-def]
    ctx, x, weight, bias, kept, index, seed, sketch: str, k: int
) -> None:
    """Saves the sketch, its seed or indices, and the weight if dx is wanted."""
    ctx.sketch, ctx.k = sketch, k
    ctx.parameter_dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, kept, index, seed)


def gradients(ctx, dy: Tensor, sketched):  # type: ignore[no-untyped-def]
    """dx, dW, db and None for the other inputs; ``sketched(rows, index, seed)`` is S^T rows."""
    weight, kept, index, seed = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx = dweight = dbias = None
    rows = as_rows(dy)
    with without_autocast(dy.device):
        # dW first: its sketch of dy is gone before dx, as large as x, is there.
        if need_weight:
            dweight = (sketched(rows, index, seed).T @ kept).to(ctx.parameter_dtype)
        if need_x:
            dx = dy @ weight.to(dy.dtype)
        if need_bias:
            dbias = rows.sum(0).to(ctx.bias_dtype)
    return dx, dweight, dbias, *(None,) * 5


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sketch: str,
    k: int,
    seed: Tensor,
    probabilities: Tensor | None = None,
) -> Tensor:
    """The layer as every backend computes it: all of the family in one function.

    Args:
        x: (..., I). weight: (O, I). bias: (O,) or None.
        sketch: a name in ``SKETCHES``. k: rows to keep. seed: 0-dim int64.
        probabilities: (N,) float64 for samplers; None: ``row_probabilities`` of x.
    """
    rows = as_rows(x.detach())
    if sketch in OBLIVIOUS:
        kept = project(rows, sketch, k, seed)
        return SketchedLinear.apply(x, weight, bias, kept, None, seed, sketch, k)
    p = row_probabilities(rows) if probabilities is None else probabilities
    index, square = sample(sketch, p, k, seed)
    kept = gather(rows, index, square.to(accumulator(x.dtype)))
    return SketchedLinear.apply(x, weight, bias, kept, index, None, sketch, k)
