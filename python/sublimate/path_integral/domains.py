"""Integrated gradients in another domain: frequencies of a series, or any coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import fail_type, flags, integer_between, one_of
from . import quadrature
from .adaptive import adaptive
from .arguments import Forward, check_inputs, fail_value, flat_baselines, narrow_dtype
from .chunks import Limits, frozen
from .functional import integrated_gradients
from .path import endpoints, fixed, setup, with_extras
from .shards import Shards

TRANSFORMS = ("fft", "rfft", "dct")


def dct(x: Tensor, dim: int = -1) -> Tensor:
    """Orthonormal DCT-II along ``dim``, by one FFT of the same length (Makhoul, 1980)."""
    x = x.movedim(dim, -1)
    n = x.shape[-1]
    mirrored = torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), -1)
    angle = torch.arange(n, dtype=torch.float64, device=x.device) * (-math.pi / (2 * n))
    size = torch.full_like(angle, math.sqrt(2 / n))
    size[0] = math.sqrt(1 / n)
    spectrum = torch.fft.fft(mirrored, dim=-1)
    return (torch.polar(size, angle).to(spectrum.dtype) * spectrum).real.movedim(-1, dim)


def _pair(a: Tensor, g: Tensor, transform: str, dim: int) -> Tensor:
    """Attributions to coefficients, given x - base and the mean gradient, both over time.

    The transform is linear, so that one of the mean gradient serves the whole path:
    A_k = Re((X_k - B_k) conj(G_k)) / N with G the transform of the mean gradient.
    """
    if transform == "dct":
        return dct(a, dim) * dct(g, dim)
    n = a.shape[dim]
    if transform == "fft":
        return (torch.fft.fft(a, dim=dim) * torch.fft.fft(g, dim=dim).conj()).real / n
    found = (torch.fft.rfft(a, dim=dim) * torch.fft.rfft(g, dim=dim).conj()).real / n
    twice = torch.full((found.shape[dim],), 2.0, dtype=found.dtype, device=found.device)
    twice[0] = 1.0
    if n % 2 == 0:
        twice[-1] = 1.0
    return (found.movedim(dim, -1) * twice).movedim(-1, dim)


def cross_domain_integrated_gradients(
    forward: Forward,
    inputs: Tensor,
    baselines: Any = None,
    target: Any = None,
    *,
    transform: str | tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = "fft",
    dim: int = -1,
    additional_forward_args: Any = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    tol: float | None = None,
    max_steps: int | None = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    return_info: bool = False,
    create_graph: bool = False,
    multi_target: bool = False,
    group: Any = None,
    shard: str = "points",
    backend: str | None = None,
) -> Any:
    """Integrated gradients to the coefficients of a transform of the input.

    Args:
        forward, inputs, target, and what is not named here: as in ``integrated_gradients``; one
            real tensor [B, ...] of inputs.
        baselines: in the domain of the inputs (for a callable pair they are transformed too).
        transform: "fft" (two-sided, unnormalised), "rfft" (one-sided: interior bins count twice),
            "dct" (orthonormal DCT-II); or (T, inverse of T), differentiable, batch first, real or
            complex, linear or not: the path is then straight among the coefficients.
        dim: of the named transforms.

    Returns:
        Real attributions [B, ...coefficients]; they sum to the change of the output. T in front
        for several targets; delta and ``Info`` as in ``integrated_gradients``.

    Cost: that of integrated gradients, with two transforms for named ones; for a pair, one inverse
    for each point.
    Source: "Time series saliency maps: explaining models across multiple domains", 2025.
    """
    if isinstance(transform, str):
        one_of("transform", transform, TRANSFORMS)
    elif (
        not isinstance(transform, tuple)
        or len(transform) != 2
        or not all(callable(t) for t in transform)
    ):
        raise fail_type("transform", "'fft', 'rfft', 'dct' or a pair of callables", transform)
    common: dict[str, Any] = {
        "additional_forward_args": additional_forward_args, "n_steps": n_steps, "method": method,
        "tol": tol, "max_steps": max_steps, "memory_budget": memory_budget,
        "internal_batch_size": internal_batch_size, "create_graph": create_graph,
        "multi_target": multi_target, "group": group, "shard": shard, "backend": backend,
        "return_convergence_delta": return_convergence_delta, "return_info": return_info,
    }  # fmt: skip
    flags(
        create_graph=create_graph, return_convergence_delta=return_convergence_delta,
        return_info=return_info,
    )  # fmt: skip
    if not isinstance(inputs, Tensor):
        raise fail_type("inputs", "one torch.Tensor", inputs)
    check_inputs(inputs)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise fail_type("dim", "an int", dim)
    if not isinstance(transform, str):
        there, back = transform
        with torch.set_grad_enabled(create_graph):
            start = torch.zeros_like(inputs) if baselines is None else baselines
            if not isinstance(start, Tensor) or start.dim() == 0:
                start = torch.full_like(inputs, float(start))
            spectrum, first = there(inputs), there(start.expand_as(inputs))
        return integrated_gradients(_Composed(forward, back), spectrum, first, target, **common)
    if inputs.is_complex():
        raise fail_value("inputs", "real numbers for a named transform", inputs.dtype)
    if inputs.dim() < 2 or not -inputs.dim() < dim < inputs.dim() or dim == 0:
        raise fail_value("dim", f"a dimension of {tuple(inputs.shape)} behind the batch", dim)
    return _named(forward, inputs, baselines, target, transform, dim, common)


class _Composed:
    """forward after the inverse transform. A class, so that its module is found and frozen."""

    def __init__(self, forward: Forward, back: Callable[[Tensor], Tensor]) -> None:
        self.forward, self.back = forward, back
        self.__self__ = forward
        self.narrow = narrow_dtype(forward)

    def __call__(self, spectrum: Tensor, *args: Any) -> Any:
        x = self.back(spectrum)
        if self.narrow is not None and x.dtype == torch.float32:
            x = x.to(self.narrow)
        return self.forward(x, *args)


def _named(
    forward: Forward,
    inputs: Tensor,
    baselines: Any,
    target: Any,
    transform: str,
    dim: int,
    options: dict[str, Any],
) -> Any:
    """Mean gradient over time along the path, then one transform of it and one of x - base."""
    create_graph = options["create_graph"]
    problem, tensors, _, chosen = setup(
        forward, inputs, target, options["multi_target"], options["additional_forward_args"],
        create_graph, options["backend"],
    )  # fmt: skip
    integer_between("n_steps", options["n_steps"], 1, 2**31)
    one_of("method", options["method"], quadrature.METHODS)
    limits = Limits.of(options["memory_budget"], options["internal_batch_size"])
    shards = Shards.of(options["group"], options["shard"], create_graph)
    want_delta, want_info = options["return_convergence_delta"], options["return_info"]
    with torch.set_grad_enabled(create_graph):
        base = flat_baselines(baselines, tensors, problem.layout)
    with frozen(forward, not create_graph), torch.set_grad_enabled(create_graph):
        if options["tol"] is not None:
            rows, info = shards.over_samples(
                problem, base,
                lambda p, b: adaptive(p, b, options["tol"], options["max_steps"], limits, chosen,
                                      multiply=False),
            )  # fmt: skip
        else:
            rows, info = shards.over_samples(
                problem, base,
                lambda p, b: fixed(p, b, options["method"], options["n_steps"], limits, chosen,
                                   False, shards, multiply=False),
            )  # fmt: skip
        (space,) = problem.layout
        moved = (problem.x[0] - base[0]).reshape(-1, *space.shape)
        place = dim if dim < 0 else dim - moved.dim()
        found = [_pair(moved, space.fold(r[0]), transform, place) for r in rows]
        result = torch.stack(found) if problem.target.multi else found[0]
        if (want_delta or want_info) and info.delta is None:
            change = endpoints(problem, base, max(2, info.rows), chosen)
            change_of = torch.stack(change) if problem.target.multi else change[0]
            batch_dim = 2 if problem.target.multi else 1
            info.delta = result.detach().flatten(batch_dim).sum(-1) - change_of
    return with_extras(result, info.delta, want_delta, info, want_info)
