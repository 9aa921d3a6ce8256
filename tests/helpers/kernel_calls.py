"""A call of every CPU kernel through the public functions, big enough that threads share it.

For the tests of threads: ThreadSanitizer, many callers at once, and results equal to the last bit.
Each call makes its own inputs from a fixed seed and returns the tensors that it computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sublimate import fewbit, multicut
from sublimate import kronecker_attention as ka
from sublimate import path_integral as pi
from sublimate import randomized_linear as rl
from torch import Tensor

Call = Callable[[], list[Tensor]]
#: Of sublimate._C, less those that only describe it.
KERNELS = (
    "fewbit_fwd", "fewbit_bwd", "fewbit_gated_fwd", "fewbit_gated_bwd", "kronecker_attention",
    "kronecker_attention_backward", "kronecker_polynomial", "kronecker_polynomial_backward",
    "multicut_best_cluster", "multicut_contract", "multicut_gaec", "multicut_gaec_graph",
    "multicut_kernighan_lin", "multicut_lazy", "multicut_move", "multicut_negative_sum",
    "multicut_topk", "path_accumulate", "path_difference", "path_mask_grad", "path_mask_penalty",
    "path_mask_points", "path_points", "path_scale", "randomized_linear_gather",
    "randomized_linear_hadamard", "randomized_linear_project",
)  # fmt: skip


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _with_gradients(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Call:
    def call() -> list[Tensor]:
        inputs = [_normal(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
        y = function(*inputs)
        grads = torch.autograd.grad(y, inputs, _normal(*y.shape, seed=9))
        return [y.detach(), *grads]

    return call


def _scores(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return torch.stack([flat.sin().sum(1), (flat * flat).sum(1)], 1)


def _clusters(**options: Any) -> Call:
    def call() -> list[Tensor]:
        x = _normal(1300, 6) + 3 * _normal(5, 6, seed=2).repeat(260, 1)
        return [multicut.dense_multicut(x, alpha=2.0, backend="cpu", **options)]

    return call


def _graph() -> list[Tensor]:
    edges = torch.randint(60, (400, 2), generator=torch.Generator().manual_seed(4))
    edges = edges[edges[:, 0] != edges[:, 1]]
    return [multicut.gaec_graph(edges, _normal(len(edges)), backend="cpu")]


def _path() -> list[Tensor]:
    # Several pieces, so that sums of one are added to those of another.
    found = pi.integrated_gradients(
        _scores, _normal(3, 6000), 0.5, 0, n_steps=7, internal_batch_size=6,
        return_convergence_delta=True, backend="cpu",
    )  # fmt: skip
    adaptive = pi.integrated_gradients(_scores, _normal(3, 5000), None, 1, tol=0.1, backend="cpu")
    return [*found, adaptive]


def _path_twice(x: Tensor) -> Tensor:
    options: Any = {"n_steps": 3, "create_graph": True, "backend": "cpu"}
    found: Tensor = pi.integrated_gradients(_scores, x, None, 0, **options)
    return found + pi.expected_gradients(_scores, x, _normal(4, 5000), 0, n_samples=3,
                                         create_graph=True, backend="cpu")  # fmt: skip


def _noise() -> list[Tensor]:
    x = _normal(3, 5000)
    return [
        pi.smooth_grad(_scores, x, 0, kind="variance", n_samples=5, backend="cpu"),
        pi.expected_gradients(_scores, x, x.flip(1), 0, n_samples=5, backend="cpu"),
    ]


def _masks() -> list[Tensor]:
    x = _normal(2, 3, 40, 44)
    found = pi.igos(_scores, x, x * 0, 0, size=7, iterations=2, n_steps=3, backend="cpu")
    return [found.masks, found.saliency, found.objective]


def _sketched(sketch: str) -> Call:
    return _with_gradients(
        lambda x, w: rl.linear(x, w, sketch=sketch, ratio=0.25, seed=3, backend="cpu"),
        (5000, 64), (40, 64),
    )  # fmt: skip


def _pairs() -> list[Tensor]:
    x = _normal(1300, 7)
    values, indices = multicut.inner_product_topk(x, 4, backend="cpu")
    return [values, indices, multicut.lower_bound(x, 0.3, backend="cpu")]


def _attention(function: Callable[..., Any], dtype: torch.dtype = torch.float32) -> Call:
    """Grouped heads and odd lengths, with masks, through autograd; LSE too, where there is one."""

    def call() -> list[Tensor]:
        shapes = ((1, 4, 70, 9), (1, 2, 66, 9), (1, 2, 67, 9), (1, 2, 66, 7), (1, 2, 67, 7))
        inputs = [_normal(*s, seed=i).to(dtype).requires_grad_() for i, s in enumerate(shapes)]
        masks = [_normal(1, m, seed=m) > -0.5 for m in (66, 67)]
        out, lse = function(*inputs, masks)
        reads = lse.isfinite()
        up = [_normal(*out.shape, seed=8).to(dtype), _normal(*lse.shape, seed=9) * reads]
        grads = torch.autograd.grad((out, lse), inputs, [up[0], up[1].to(lse.dtype)])
        return [out.detach(), lse.detach(), *grads]

    return call


def _windows(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, masks: Any) -> Any:
    return ka.kronecker_attention(
        q, k1, k2, v1, v2, mask1=masks[0], mask2=masks[1], causal=True, window=(9, 40),
        return_lse=True, backend="cpu",
    )  # fmt: skip


def _strassen(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, masks: Any) -> Any:
    return ka.strassen_attention(
        q, k1, k2, v1, v2, mask1=masks[0], mask2=masks[1], return_lse=True, backend="cpu"
    )


def _hybrid(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, masks: Any) -> Any:
    return ka.kronecker_attention(
        q, k1, k2, v1, v2, mask1=masks[0], mask2=masks[1], causal=True, window=(9, 40), scale=0.02,
        method="hybrid", return_lse=True, backend="cpu",
    )  # fmt: skip


def _order_4(q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, masks: Any) -> Any:
    return ka.polynomial_attention(
        q, [k1, k2, k1], [v1, v2, v1], masks=[*masks, None], scale=0.02, window=(9, 40, 0),
        return_lse=True, backend="cpu",
    )  # fmt: skip


_HEADS = ((1, 2, 70, 16), (1, 2, 66, 16), (1, 2, 67, 16), (1, 2, 66, 8), (1, 2, 67, 8))

CALLS: dict[str, Call] = {
    "fewbit": _with_gradients(lambda x: fewbit.gelu(x, bits=3, backend="cpu"), (300, 700)),
    "fewbit stochastic": _with_gradients(
        lambda x: fewbit.silu(x, bits=2, stochastic=True, seed=5, backend="cpu"), (300, 701)
    ),
    "fewbit one bit": _with_gradients(lambda x: fewbit.relu(x, backend="cpu"), (300, 703)),
    "fewbit gated": _with_gradients(
        lambda g, u: fewbit.swiglu(g, u, bits=3, backend="cpu"), (300, 515), (300, 515)
    ),
    "attention": _with_gradients(
        lambda *t: ka.kronecker_attention(*t, method="exact", backend="cpu"), *_HEADS
    ),
    "attention, causal": _with_gradients(
        lambda *t: ka.kronecker_attention(
            *t, method="exact", causal=True, window=(30, 0), backend="cpu"
        ),
        *_HEADS,
    ),
    "polynomial": _with_gradients(
        lambda *t: ka.kronecker_attention(*t, method="polynomial", scale=0.05, backend="cpu"),
        *_HEADS,
    ),
    "polynomial, causal": _with_gradients(
        lambda *t: ka.kronecker_attention(
            *t, method="polynomial", scale=0.05, causal=True, backend="cpu"
        ),
        *_HEADS,
    ),
    "attention, windows and masks": _attention(_windows),
    "attention, narrow": _attention(_windows, torch.bfloat16),
    "attention, strassen": _attention(_strassen),
    "attention, hybrid": _attention(_hybrid),
    "polynomial, order 4": _attention(_order_4),
    "pairs": _pairs,
    "clusters": _clusters(),
    **{f"clusters, {m}": _clusters(method=m, restarts=2)
       for m in ("star", "average", "reciprocal", "lazy")},
    "contraction": _clusters(method="gaec", refine="kernighan-lin"),
    "graph": _graph,
    "path": _path,
    "path, differentiated": _with_gradients(_path_twice, (3, 5000)),
    "noise": _noise,
    "masks": _masks,
    **{f"linear, {s}": _sketched(s) for s in ("srht", "gaussian", "rademacher", "countsketch",
                                              "rows", "crs", "wta")},
    "hadamard": _with_gradients(lambda x: rl.hadamard_transform(x, backend="cpu"), (200, 1000)),
}  # fmt: skip
