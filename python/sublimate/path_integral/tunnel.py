"""NoiseTunnel: any attribution averaged over noisy copies of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends
from .._checks import dense, fail_type, flags, integer_between, number
from . import autograd
from .arguments import as_tuple, check_inputs, fail_value, spaces
from .chunks import pieces
from .sampling import Draws, random_references, sample_numbers
from .shards import seed_tensor

TYPES = ("smoothgrad", "smoothgrad_sq", "vargrad")


class Named:
    """What Captum's classes say of themselves."""

    @classmethod
    def get_name(cls) -> str:
        """The class's name in words."""
        return "".join(c if c.islower() else " " + c for c in cls.__name__).strip()

    def attribute_future(self) -> None:
        """Not implemented, as in Captum's classes of these names."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")


class NoiseTunnel(Named):
    """Mean, mean square or variance of another method's attributions under Gaussian noise.

    Args:
        attribution_method: an object with ``attribute(inputs, **kwargs)``: ours or Captum's.
        seed: None: each call draws one from torch's generator.
    """

    def __init__(
        self, attribution_method: Any, *, seed: int | None = None, backend: str | None = None
    ) -> None:
        if not callable(getattr(attribution_method, "attribute", None)):
            raise fail_type("attribution_method", "an object with attribute()", attribution_method)
        self.attribution_method, self.seed, self.backend = attribution_method, seed, backend
        self.forward_func = getattr(attribution_method, "forward_func", None)

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        return bool(self.attribution_method.has_convergence_delta())

    def attribute(
        self,
        inputs: Any,
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        draw_baseline_from_distrib: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Attributions as the method gives them; delta (B * nt_samples,), sample by sample.

        Args:
            nt_type: "smoothgrad", "smoothgrad_sq" or "vargrad".
            nt_samples_batch_size: copies that go through the method at once; default all.
            draw_baseline_from_distrib: each copy gets a random row of ``baselines``.
            kwargs: for the method; target, baselines and additional_forward_args follow the copies.
        """
        if nt_type not in TYPES:
            raise fail_value("nt_type", f"one of {', '.join(TYPES)}", repr(nt_type))
        integer_between("nt_samples", nt_samples, 1, 2**31)
        single = not isinstance(inputs, (tuple, list))
        tensors = check_inputs(inputs)
        deviations = as_tuple(stdevs) if isinstance(stdevs, tuple) else (stdevs,) * len(tensors)
        if len(deviations) != len(tensors):
            raise fail_value("stdevs", f"one for each of {len(tensors)} inputs", len(deviations))
        for s in deviations:
            number("stdevs", s)
        if nt_samples_batch_size is not None:
            integer_between("nt_samples_batch_size", nt_samples_batch_size, 1, 2**31)
        flags(draw_baseline_from_distrib=draw_baseline_from_distrib)
        if not len(tensors[0]):
            raise fail_value("inputs", "at least one sample", tuple(tensors[0].shape))
        create_graph = bool(getattr(self.attribution_method, "create_graph", False))
        with torch.set_grad_enabled(create_graph):
            at_once = nt_samples_batch_size or nt_samples
            return self._run(tensors, single, nt_type, nt_samples, at_once, deviations,
                             draw_baseline_from_distrib, kwargs)  # fmt: skip

    def _run(
        self,
        tensors: tuple[Tensor, ...],
        single: bool,
        nt_type: str,
        n: int,
        at_once: int,
        deviations: tuple[float, ...],
        draw: bool,
        kwargs: dict[str, Any],
    ) -> Any:
        def anything(*_: Any) -> None:
            return None

        layout = spaces(anything, tensors)
        batch, device = tensors[0].shape[0], tensors[0].device
        flat = [s.flat(t) for s, t in zip(layout, tensors, strict=True)]
        backend = _backends.resolve("path_integral", self.backend, flat[0])
        seed = seed_tensor(self.seed, device)
        sample = sample_numbers(None, batch, device)
        ones = torch.ones(n, dtype=torch.float64, device=device)
        noise = tuple(
            torch.full((batch,), float(d), dtype=s.acc, device=device)
            for d, s in zip(deviations, layout, strict=True)
        )
        draws = Draws(ones, None, ones / n, sample, noise, seed, n)
        second = nt_type != "smoothgrad"
        sums: list[Any] = []
        deltas: list[Tensor] = []
        shapes: list[torch.Size] = []
        as_one = True
        want_delta = bool(kwargs.get("return_convergence_delta"))
        for piece in pieces(n, min(n, at_once)):
            own = draws.points(piece)
            sizes = [s.size for s in layout]
            noisy = tuple(
                s.as_model_input(
                    autograd.points(x, x, None, own.alpha.to(s.acc), dtype=s.points,
                                    backend=backend, **own.noise(sizes, i))
                )
                for i, (x, s) in enumerate(zip(flat, layout, strict=True))
            )  # fmt: skip
            options = _expanded(kwargs, own, batch, draw)
            found = self.attribution_method.attribute(noisy[0] if single else noisy, **options)
            if want_delta:
                found, delta = found
                deltas.append(delta.view(own.count, batch))
            as_one = not isinstance(found, (tuple, list))
            parts = as_tuple(found)
            shapes = [p.shape[1:] for p in parts]
            sums = sums or [(None, None)] * len(parts)
            for i, p in enumerate(parts):
                terms = p.reshape(own.count, batch, -1)
                weight = own.weight.to(torch.float64 if p.dtype == torch.float64 else torch.float32)
                mean, square = sums[i]
                sums[i] = autograd.accumulate(terms, weight, mean, square, second, backend)
        result = []
        for (mean, square), shape in zip(sums, shapes, strict=True):
            value = mean if not second else square
            if nt_type == "vargrad":
                value = (square - mean.square()).clamp_min(0)
            result.append(value.reshape(batch, *shape))
        out = result[0] if as_one else tuple(result)
        return (out, torch.cat(deltas).t().reshape(-1)) if want_delta else out


def _expanded(kwargs: dict[str, Any], draws: Draws, batch: int, draw: bool) -> dict[str, Any]:
    """Arguments for all copies: row k * B + b has those of sample b."""
    count = draws.count
    options = dict(kwargs)
    target = options.get("target")
    if isinstance(target, Tensor):
        dense("target", target)
    if isinstance(target, list):
        options["target"] = target * count
    elif isinstance(target, Tensor) and target.numel() > 1:
        if target.dim() != 1:
            raise fail_value("target", f"one index, or shape ({batch},)", tuple(target.shape))
        options["target"] = target.repeat(count)

    def repeat(a: Any) -> Any:
        if isinstance(a, Tensor):
            dense("arguments of attribute", a)
        if isinstance(a, Tensor) and a.dim() > 0 and a.shape[0] == batch:
            return a.repeat(count, *(1,) * (a.dim() - 1))
        return a

    def drawn(a: Any) -> Any:
        if not isinstance(a, Tensor) or a.dim() == 0:
            return a
        index = random_references(draws.seed, draws.sample, draws.total, a.shape[0], False)
        return a[index[draws.first : draws.first + count].reshape(-1)]

    changes = {"baselines": drawn if draw else repeat}
    changes |= dict.fromkeys(("additional_forward_args", "feature_mask"), repeat)
    for name, change in changes.items():
        value = options.get(name)
        if isinstance(value, (tuple, list)):
            options[name] = tuple(change(v) for v in value)
        elif value is not None:
            options[name] = change(value)
    return options
