"""Training with attributions: priors on what they look like, and robustness of their direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backends
from .._checks import dense, fail_type, floating_tensor, number, one_of, same_as
from .arguments import Forward, as_tuple, fail_value
from .functional import integrated_gradients

PRIORS = ("smoothness", "sparsity", "gini", "total_variation")


def _differences(a: Tensor) -> list[Tensor]:
    """Differences of neighbours along every dimension of a sample but channels, flattened."""
    dims = range(2 if a.dim() >= 4 else 1, a.dim())
    return [a.diff(dim=d).flatten(1) for d in dims if a.shape[d] > 1]


def smoothness(a: Tensor) -> Tensor:
    """Mean squared difference of neighbours, [B]; dimension 1 of [B, C, H, W] are channels."""
    parts = [d.square().mean(1) for d in _differences(a)]
    return torch.stack(parts).sum(0) if parts else a.flatten(1).sum(1) * 0


def total_variation(a: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, [B]."""
    parts = [d.abs().mean(1) for d in _differences(a)]
    return torch.stack(parts).sum(0) if parts else a.flatten(1).sum(1) * 0


def sparsity(a: Tensor) -> Tensor:
    """L1 norm over L2 norm over sqrt(E): 1 for even, 1 / sqrt(E) for one feature alone, [B]."""
    flat = a.flatten(1)
    tiny = torch.finfo(a.dtype).tiny
    l2 = flat.square().sum(1).clamp_min(tiny).sqrt()
    return flat.abs().sum(1) / (l2 * flat.shape[1] ** 0.5)


def gini(a: Tensor) -> Tensor:
    """Less the Gini coefficient of the mean absolute attributions of a batch: scalar, [1].

    Source: Erion et al., 2021: a model that uses few features has a coefficient near 1.
    """
    v = a.flatten(1).abs().mean(0).sort().values
    n = v.numel()
    rank = torch.arange(1, n + 1, dtype=v.dtype, device=v.device)
    total = v.sum().clamp_min(torch.finfo(v.dtype).tiny)
    return -((2 * rank - n - 1) * v).sum()[None] / (n * total)


def attribution_prior(
    attributions: Any = None,
    *,
    kind: str | Callable[[Tensor], Tensor] = "smoothness",
    backend: str | None = None,
) -> Any:
    """A penalty on attributions, to be added to a training loss.

    Args:
        attributions: [B, ...] or a tuple, from an estimator with ``create_graph=True``. None: the
            penalty itself is returned, a function of attributions.
        kind: "smoothness" (mean squared difference of neighbours), "total_variation" (absolute),
            "sparsity" (L1 / L2), "gini" (minus the Gini coefficient of mean absolute attributions),
            or a function of a tensor [B, ...].
        backend: as of the estimators, and checked like theirs; a penalty is plain torch on each.

    Returns:
        A scalar, the mean over the batch, summed over inputs.

    Raises:
        TypeError, ValueError: attributions are no tensors; an unknown kind or backend.
    """
    if isinstance(kind, str):
        one_of("kind", kind, PRIORS)
        fn: Callable[[Tensor], Tensor] = globals()[kind]
    elif callable(kind):
        fn = kind
    else:
        raise fail_type("kind", f"one of {', '.join(PRIORS)} or a callable", kind)

    def penalty(given: Any) -> Tensor:
        parts = as_tuple(given)
        if not parts:
            raise fail_type("attributions", "a tensor or a tuple of tensors", given)
        for a in parts:
            if not isinstance(a, Tensor):
                raise fail_type("attributions", "a tensor or a tuple of tensors", a)
            floating_tensor("attributions", a)
            if a.dim() == 0:
                raise fail_value("attributions", "a batch dimension first", a)
            if backend is not None:
                _backends.resolve("path_integral", backend, a)
        # A sample of one number has no dimension of its own.
        parts = tuple(a[:, None] if a.dim() == 1 else a for a in parts)
        found = [fn(a) for a in parts]
        for value in found:
            if not isinstance(value, Tensor):
                raise fail_type("kind", "a function that returns a torch.Tensor", value)
        return torch.stack([value.mean() for value in found]).sum()

    return penalty if attributions is None else penalty(attributions)


class IGRegularizer(nn.Module):
    """1 - cosine of integrated gradients at x and a perturbed x: attributions keep their direction.

    Args:
        forward: the model in training. It is not registered as a submodule.
        n_steps, method, baselines, create_graph options: of ``integrated_gradients``.
        stdev: of the Gaussian perturbation where none is given.

    Source: Wang and Kong, "Exploiting the relationship between Kendall's rank correlation and
    cosine similarity for attribution protection", 2022.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        n_steps: int = 8,
        method: str = "gausslegendre",
        baselines: Any = None,
        stdev: float = 0.05,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not callable(forward):
            raise fail_type("forward", "a callable", forward)
        number("stdev", stdev)
        self._forward = (forward,)  # in a tuple: its parameters are not ours
        self.n_steps, self.method, self.baselines = n_steps, method, baselines
        self.stdev, self.backend = stdev, backend

    def forward(self, x: Tensor, target: Any = None, perturbed: Tensor | None = None) -> Tensor:
        """Scalar in [0, 2], differentiable in the model's parameters.

        Args:
            perturbed: like x; default x + stdev * noise from torch's generator.
        """
        for name, t in (("x", x), ("perturbed", x if perturbed is None else perturbed)):
            if not isinstance(t, Tensor):
                raise fail_type(name, "a torch.Tensor", t)
            dense(name, t)
            same_as(name, t, "x", x)
        if perturbed is None:
            perturbed = x + self.stdev * torch.randn_like(x)
        both = []
        for at in (x, perturbed):
            a = integrated_gradients(
                self._forward[0],
                at,
                self.baselines,
                target,
                n_steps=self.n_steps,
                method=self.method,
                create_graph=True,
                backend=self.backend,
            )
            both.append(a.reshape(a.shape[0], a.shape[1:].numel()))
        return (1 - torch.nn.functional.cosine_similarity(both[0], both[1], dim=1)).mean()
