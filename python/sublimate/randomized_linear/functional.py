"""Linear layers that keep a random sketch of their input: functions.

y = x W^T + b, dx and db are exact; dW is estimated without bias from S^T x, k of the N rows that x
has when all its dimensions but the last are flattened, and S^T dy. S is a pure function of the seed
and is never stored. The sketches, their variances and costs are in this folder's README. Source:
Bershatsky et al., "Memory-Efficient Backpropagation through Large Linear Layers" (arXiv
2201.13195).

Shared by the functions here:

Args:
    x: (..., I), any strides; float32, float16, bfloat16 or float64; any device with a backend.
    ratio: k / N in (0, 1]; k = min(N, max(1, int(ratio N + 0.5))).
    sketch: "gaussian", "rademacher", "srht", "dct", "countsketch", "rows", "crs" or "wta".
    seed: int in [0, 2**63) or 0-dim int64 tensor on x's device.
    probabilities: for "crs" and "wta": (N,) >= 0 with sum 1, of taking each row; None: proportional
        to the norms of x's rows. Checking them reads two numbers on the host.
    backend: "auto", "reference", "cpu", "triton" or "cuda"; None takes the process-wide setting.

Raises:
    TypeError, ValueError: a bad argument; raised before anything runs.
    BackendUnavailable: the named backend cannot run this call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backends, _checks
from .._autograd import carries_tangent, wants_gradient
from .._dtypes import accumulator
from . import reference
from .arguments import check_options, check_plain, check_probabilities, check_rows, check_seed
from .autograd import HadamardTransform, Project, RandomizedLinear, ops
from .reference import OBLIVIOUS

FAMILY = "randomized_linear"
LONGEST_HADAMARD = 2**20


def _check_parameters(x: Tensor, weight: Any, bias: Any, dtype: torch.dtype) -> None:
    _checks.floating_tensor("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise _checks.fail_value(
            "weight", f"shape (out, {x.shape[-1]}) for x of shape {tuple(x.shape)}",
            tuple(weight.shape),
        )  # fmt: skip
    parameters = [("weight", weight)]
    if bias is not None:
        _checks.floating_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise _checks.fail_value("bias", f"shape {tuple(weight.shape[:1])}", tuple(bias.shape))
        parameters.append(("bias", bias))
    for argument, t in parameters:
        if t.device != x.device:
            raise _checks.fail_value(argument, f"the device of x, {x.device}", t.device)
        if _computed(t) != dtype:
            raise _checks.fail_kind(argument, f"the dtype of x, {x.dtype}", str(t.dtype))


def _computed(t: Tensor) -> torch.dtype:
    """The dtype in which a linear layer uses t: autocast's where it is on, as in torch."""
    kind = t.device.type
    if t.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return t.dtype


def seed_tensor(seed: int | Tensor, x: Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=x.device)


# ------------------------------------------------------------------------------------- functions


class SharedInput:
    """One sketch of x for several linear layers; made by ``shared_input``.

    The sketch is drawn when the first layer needs it, once for each dtype. The handle holds x:
    drop it after the last layer.
    """

    def __init__(
        self,
        x: Tensor,
        ratio: float,
        sketch: str,
        seed: int | Tensor,
        probabilities: Tensor | None,
        backend: str | None,
    ) -> None:
        _checks.floating_tensor("x", x)
        if x.dim() == 0:
            raise _checks.fail_value("x", "at least one dimension", "a 0-dim tensor")
        check_options(ratio, sketch)
        check_seed(seed, x)
        n = 1
        for size in x.shape[:-1]:
            n = n * size
        check_rows(x, n)
        check_probabilities(probabilities, sketch, x)
        self.x, self.sketch, self.seed, self.probabilities = x, sketch, seed, probabilities
        # Under torch.compile a float argument is symbolic, and sizes must not depend on one: frexp
        # makes it a constant.
        self.k = reference.rows_kept(n, math.ldexp(*math.frexp(ratio)))
        self.backend = _backends.resolve(FAMILY, backend, x)
        self._casts: dict[torch.dtype, Tensor] = {}
        self._sketches: dict[torch.dtype, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b, (..., O); dW from the shared sketch.

        Args:
            weight: (O, I). bias: (O,) or None. x's dtype, or any but float64 under autocast.
        """
        dtype = _computed(self.x)
        _check_parameters(self.x, weight, bias, dtype)
        if not wants_gradient(weight):
            return F.linear(self.x, weight, bias)
        check_plain(x=self.x, weight=weight, bias=bias)
        if dtype not in self._casts:
            self._casts[dtype] = self.x.to(dtype)
        x = self._casts[dtype]
        if dtype not in self._sketches:
            self._sketches[dtype] = self._draw(reference.as_rows(x.detach()))
        arguments = (x, weight, bias, *self._sketches[dtype], self.sketch, self.k)
        y: Tensor
        if self.backend == "reference":
            y = reference.SketchedLinear.apply(*arguments)
        else:
            y = RandomizedLinear.apply(*arguments, self.backend)
        return y

    def _draw(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is kept of (N, I): the sketched rows, indices of samplers, the seed of others."""
        seed, opaque = seed_tensor(self.seed, rows), self.backend != "reference"
        if self.sketch in OBLIVIOUS:
            if opaque:
                kept = ops.randomized_linear_project(rows, seed, self.sketch, self.k, self.backend)
            else:
                kept = reference.project(rows, self.sketch, self.k, seed)
            return kept, None, seed
        if self.probabilities is None:
            p = reference.row_probabilities(rows)
        else:
            p = self.probabilities.detach().double()
        index, square = reference.sample(self.sketch, p, self.k, seed)
        scale = square.to(accumulator(rows.dtype))
        if opaque:
            return ops.randomized_linear_gather(rows, index, scale, self.backend), index, None
        return reference.gather(rows, index, scale), index, None


def shared_input(
    x: Tensor,
    *,
    ratio: float = 0.2,
    sketch: str = "srht",
    seed: int | Tensor,
    probabilities: Tensor | None = None,
    backend: str | None = None,
) -> SharedInput:
    """A handle whose ``linear(weight, bias)`` keeps one sketch for all layers that read x.

    Query, key and value, or gate and up projections: eager keeps x once for all of them, so
    separate sketches lose for ratio > 1/3 (1/2), and one never does. The estimates of the layers'
    gradients are then correlated; each is unbiased. Arguments and errors in the module's docstring.
    """
    return SharedInput(x, ratio, sketch, seed, probabilities, backend)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ratio: float = 0.2,
    sketch: str = "srht",
    seed: int | Tensor,
    probabilities: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x W^T + b keeping a sketch of x; gradients of x and bias exact, of weight unbiased.

    Kept for backward: k (I) numbers of x's dtype and the seed (8 bytes), or k int32 indices for
    "crs" and "wta"; besides the weight, which lives anyway. If the weight needs no gradient nothing
    is sketched or kept, nor under ``torch.no_grad``.

    Args:
        weight: (O, I), of x's dtype (any but float64 under autocast). bias: (O,) or None.

    Returns:
        (..., O). Time beside the two exact products: 2 k I O for dW in place of 2 N I O, and the
        sketch of x and of dy: O(N (I + O)), times log for srht and dct, times k for dense ones.
        Second derivatives are refused; vmap is supported by the reference backend only. The other
        arguments and errors in the module's docstring.
    """
    return SharedInput(x, ratio, sketch, seed, probabilities, backend).linear(weight, bias)


def project(
    x: Tensor, sketch: str, k: int, seed: int | Tensor, *, backend: str | None = None
) -> Tensor:
    """S^T x for one of the sketches that do not look at x.

    Args:
        x: (N, I).
        sketch: any but "crs" and "wta".
        k: rows of the result, >= 0; rows beyond those there are to choose from are zero.
        seed, backend: as in the module's docstring.

    Returns:
        (k, I), summed in fp32 (fp64 for fp64) and rounded once. Its gradient, S g, is evaluated by
        plain PyTorch whatever the backend.
    """
    _checks.floating_tensor("x", x)
    if x.dim() != 2:
        raise _checks.fail_value("x", "shape (N, I)", tuple(x.shape))
    check_plain(x=x)
    check_rows(x, x.shape[0])
    _checks.one_of("sketch", sketch, OBLIVIOUS)
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise _checks.fail_type("k", "an int >= 0", k)
    if not 0 <= k < 2**31:
        raise _checks.fail_value("k", "an int in [0, 2**31)", k)
    check_seed(seed, x)
    chosen = _backends.resolve(FAMILY, backend, x)
    seed = seed_tensor(seed, x)
    if chosen == "reference":
        return reference.project(x, sketch, k, seed)
    if not (wants_gradient(x) or carries_tangent(x)):
        return ops.randomized_linear_project(x, seed, sketch, k, chosen)
    out: Tensor = Project.apply(x, seed, sketch, k, chosen)
    return out


def hadamard_transform(x: Tensor, scale: float = 1.0, *, backend: str | None = None) -> Tensor:
    """scale H x along the last dimension, H[i, j] = (-1)**popcount(i & j) (Sylvester's order).

    Args:
        x: (..., L), padded with zeros to the next power of two P, at most 2**20.
        scale: a number; P**-0.5 makes the transform orthonormal and its own inverse.
        backend: as in the module's docstring.

    Returns:
        (..., P) in x's dtype, summed in fp32 (fp64 for fp64) and rounded once. Differentiable any
        number of times; vmap works. O(P log P) per row.
    """
    _checks.floating_tensor("x", x)
    if x.dim() == 0:
        raise _checks.fail_value("x", "at least one dimension", "a 0-dim tensor")
    if x.shape[-1] > LONGEST_HADAMARD:
        raise _checks.fail_value("x", "a last dimension of at most 2**20", x.shape[-1])
    _checks.number("scale", scale)
    scale = float(scale)
    check_plain(x=x)
    chosen = _backends.resolve(FAMILY, backend, x)
    if chosen == "reference":
        return reference.hadamard_transform(x, scale)
    if not (wants_gradient(x) or carries_tangent(x)):
        return ops.hadamard_transform(x, scale, chosen)
    y: Tensor = HadamardTransform.apply(x, scale, chosen)
    return y
