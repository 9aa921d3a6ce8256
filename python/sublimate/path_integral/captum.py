"""Classes with Captum's names, arguments, shapes and errors, on top of the functions here.

``from sublimate.path_integral import IntegratedGradients`` replaces Captum's import. What differs
is listed in README.md. Options of ours are keyword-only.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from .._checks import fail_type, flags
from .arguments import Forward, as_tuple, fail_value, flat_baselines
from .chunks import frozen
from .expected import expected_gradients
from .functional import integrated_gradients
from .layers import change_between, layer_integrated_gradients
from .path import endpoints, setup, shaped
from .shap import gradient_shap
from .smooth import smooth_grad
from .tunnel import Named, NoiseTunnel

__all__ = [
    "ExpectedGradients",
    "GradientShap",
    "IntegratedGradients",
    "LayerIntegratedGradients",
    "NoiseTunnel",
    "Saliency",
    "SmoothGrad",
]


class _Attribution(Named):
    """What all have: the function, and options of ours.

    Args:
        create_graph: attributions are differentiable.
        backend: of the kernels.
    """

    def __init__(
        self,
        forward_func: Forward,
        *,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        if not callable(forward_func):
            raise fail_type("forward_func", "a callable", forward_func)
        self.forward_func = forward_func
        self.create_graph, self.backend = create_graph, backend

    def __init_subclass__(cls, **options: Any) -> None:
        # Captum's NoiseTunnel calls attribute.__wrapped__: Captum's own is wrapped to be logged.
        super().__init_subclass__(**options)
        plain = vars(cls).get("attribute")
        if plain is not None and not hasattr(plain, "__wrapped__"):

            @functools.wraps(plain)
            def attribute(self: Any, *arguments: Any, **keywords: Any) -> Any:
                return plain(self, *arguments, **keywords)

            setattr(cls, "attribute", attribute)  # noqa: B010

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def has_convergence_delta(self) -> bool:
        """Whether ``return_convergence_delta`` is an argument of ``attribute``."""
        return False

    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Sum of attributions less F(end_point) - F(start_point), of each sample: (B,).

        The points may be integers (token ids), where attributions are a layer's.
        """
        ends = as_tuple(end_point)
        if any(isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex())
               for t in ends):  # fmt: skip
            change = change_between(
                self.forward_func, start_point, ends, target, additional_forward_args
            )
        else:
            problem, tensors, _, backend = setup(
                self.forward_func, end_point, target, False, additional_forward_args, False,
                self.backend,
            )  # fmt: skip
            start = flat_baselines(start_point, tensors, problem.layout, "start_point")
            (change,) = endpoints(problem, start, 2 * problem.batch, backend)
        total: Any = 0
        for a in as_tuple(attributions):
            if a.shape[0] != len(change):
                raise fail_value("attributions", f"{len(change)} samples", a.shape[0])
            total = total + a.detach().reshape(len(change), -1).sum(1)
        delta: Tensor = total - change
        return delta


class _PathAttribution(_Attribution):
    def __init__(
        self,
        forward_func: Forward,
        multiply_by_inputs: bool = True,
        *,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(forward_func, create_graph=create_graph, backend=backend)
        self._multiply = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply

    def has_convergence_delta(self) -> bool:
        return True


class IntegratedGradients(_PathAttribution):
    """See ``integrated_gradients``; Captum's arguments in Captum's order."""

    def __init__(
        self,
        forward_func: Forward,
        multiply_by_inputs: bool = True,
        *,
        compat_trapezoid: bool = False,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            forward_func, multiply_by_inputs, create_graph=create_graph, backend=backend
        )
        self.compat_trapezoid = compat_trapezoid

    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        tol: float | None = None,
        max_steps: int | None = None,
        memory_budget: int | None = None,
        multi_target: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Attributions like inputs; with delta (B,) and ``Info`` if asked for."""
        return integrated_gradients(
            self.forward_func,
            inputs,
            baselines,
            target,
            additional_forward_args=additional_forward_args,
            n_steps=n_steps,
            method=method,
            tol=tol,
            max_steps=max_steps,
            memory_budget=memory_budget,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=return_convergence_delta,
            return_info=return_info,
            create_graph=self.create_graph,
            multi_target=multi_target,
            multiply_by_inputs=self._multiply,
            compat_trapezoid=self.compat_trapezoid,
            backend=self.backend,
        )


class LayerIntegratedGradients(_PathAttribution):
    """See ``layer_integrated_gradients``. ``device_ids`` is accepted and not needed."""

    def __init__(
        self,
        forward_func: Forward,
        layer: nn.Module | list[nn.Module],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        compat_trapezoid: bool = False,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            forward_func, multiply_by_inputs, create_graph=create_graph, backend=backend
        )
        self.layer, self.device_ids = layer, device_ids
        self.compat_trapezoid = compat_trapezoid

    @staticmethod
    def interpolate(
        layer_attribution: Tensor,
        interpolate_dims: int | tuple[int, ...],
        interpolate_mode: str = "nearest",
    ) -> Tensor:
        """Attributions [B, C, ...] of a layer, resized to the size of an input."""
        found: Tensor = nn.functional.interpolate(
            layer_attribution, interpolate_dims, mode=interpolate_mode
        )
        return found

    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        tol: float | None = None,
        max_steps: int | None = None,
        memory_budget: int | None = None,
        multi_target: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Attributions like the layer's values; with delta (B,) and ``Info`` if asked for.

        grad_kwargs: of Captum's call of autograd; allow_unused and materialize_grads alone are
            accepted, being always on.
        """
        flags(return_convergence_delta=return_convergence_delta, return_info=return_info)
        if not isinstance(grad_kwargs, (dict, type(None))):
            raise fail_type("grad_kwargs", "a dict or None", grad_kwargs)
        unknown = set(grad_kwargs or ()) - {"allow_unused", "materialize_grads"}
        if unknown:
            known = "only allow_unused and materialize_grads"
            raise fail_value("grad_kwargs", known, ", ".join(sorted(map(str, unknown))))
        found, info = layer_integrated_gradients(
            self.forward_func,
            self.layer,
            inputs,
            baselines,
            target,
            additional_forward_args=additional_forward_args,
            n_steps=n_steps,
            method=method,
            tol=tol,
            max_steps=max_steps,
            memory_budget=memory_budget,
            internal_batch_size=internal_batch_size,
            attribute_to_layer_input=attribute_to_layer_input,
            create_graph=self.create_graph,
            multi_target=multi_target,
            multiply_by_inputs=self._multiply,
            compat_trapezoid=self.compat_trapezoid,
            backend=self.backend,
        )
        extras = (info.delta,) * return_convergence_delta + (info,) * return_info
        return (found, *extras) if extras else found


class ExpectedGradients(_PathAttribution):
    """See ``expected_gradients``; arguments in the order of Captum's GradientShap.

    Args:
        seed: None: each call draws one from torch's generator.
    """

    def __init__(
        self,
        forward_func: Forward,
        multiply_by_inputs: bool = True,
        *,
        stratified: bool = True,
        seed: int | None = None,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            forward_func, multiply_by_inputs, create_graph=create_graph, backend=backend
        )
        self.stratified, self.seed = stratified, seed

    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 50,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        internal_batch_size: int | None = None,
        memory_budget: int | None = None,
        multi_target: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Attributions like inputs; ``baselines`` [R, ...] are the references."""
        return expected_gradients(
            self.forward_func,
            inputs,
            baselines,
            target,
            n_samples=n_samples,
            stratified=self.stratified,
            seed=self.seed,
            additional_forward_args=additional_forward_args,
            memory_budget=memory_budget,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=return_convergence_delta,
            return_info=return_info,
            create_graph=self.create_graph,
            multi_target=multi_target,
            multiply_by_inputs=self._multiply,
            backend=self.backend,
        )


class GradientShap(_PathAttribution):
    """Captum's GradientShap: independent draws, noise on the input, delta of every draw.

    Args:
        stratified: places and references as in ``expected_gradients``: less scattered.
        seed: None: each call draws one from torch's generator.
    """

    def __init__(
        self,
        forward_func: Forward,
        multiply_by_inputs: bool = True,
        *,
        stratified: bool = False,
        seed: int | None = None,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            forward_func, multiply_by_inputs, create_graph=create_graph, backend=backend
        )
        self.stratified, self.seed = stratified, seed

    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        internal_batch_size: int | None = None,
        memory_budget: int | None = None,
    ) -> Any:
        """Attributions like inputs; delta (B * n_samples,), ordered by sample."""
        return gradient_shap(
            self.forward_func,
            inputs,
            baselines,
            target,
            n_samples=n_samples,
            stdevs=stdevs,
            stratified=self.stratified,
            seed=self.seed,
            additional_forward_args=additional_forward_args,
            memory_budget=memory_budget,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=return_convergence_delta,
            create_graph=self.create_graph,
            multiply_by_inputs=self._multiply,
            backend=self.backend,
        )


class SmoothGrad(_Attribution):
    """See ``smooth_grad``.

    Args:
        seed: None: each call draws one from torch's generator.
    """

    def __init__(
        self,
        forward_func: Forward,
        *,
        seed: int | None = None,
        create_graph: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(forward_func, create_graph=create_graph, backend=backend)
        self.seed = seed

    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        n_samples: int = 50,
        stdevs: Any = 0.1,
        kind: str = "mean",
        internal_batch_size: int | None = None,
        *,
        memory_budget: int | None = None,
        multi_target: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Mean, mean square or variance of the gradient at noisy copies of inputs."""
        return smooth_grad(
            self.forward_func,
            inputs,
            target,
            kind=kind,
            stdev=stdevs,
            n_samples=n_samples,
            seed=self.seed,
            additional_forward_args=additional_forward_args,
            memory_budget=memory_budget,
            internal_batch_size=internal_batch_size,
            return_info=return_info,
            create_graph=self.create_graph,
            multi_target=multi_target,
            backend=self.backend,
        )


class Saliency(_Attribution):
    """The gradient, or its absolute value."""

    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
        *,
        multi_target: bool = False,
    ) -> Any:
        """Like inputs, in their dtype."""
        flags(abs=abs)
        problem, tensors, single, _ = setup(
            self.forward_func, inputs, target, multi_target, additional_forward_args,
            self.create_graph, "reference",
        )  # fmt: skip
        with frozen(self.forward_func, not self.create_graph):
            z = [x[None].to(s.points) for x, s in zip(problem.x, problem.layout, strict=True)]
            found = [[g[0] for g in grads] for _, grads in problem.gradients(z)]
        result = as_tuple(shaped(found, problem.layout, problem.target, False, True))
        result = tuple(r.to(t.dtype) for r, t in zip(result, tensors, strict=True))
        if abs:
            result = tuple(r.abs() for r in result)
        return result[0] if single else result
