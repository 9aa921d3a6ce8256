"""Integrated gradients inside a model: the path is laid through the values of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backends
from .._checks import fail_type, flags, integer_between, one_of, readable
from . import quadrature
from .adaptive import adaptive
from .arguments import (
    Forward,
    Target,
    arguments_of,
    as_tuple,
    check_inputs,
    fail_value,
    filled,
    narrow_dtype,
    spaces,
)
from .chunks import Limits, Problem, frozen
from .path import Info, fixed, shaped
from .shards import Shards


def eager(forward: Forward) -> Forward:
    """The module behind a compiled one: hooks set after compilation are not seen by its graph."""
    original: Forward = getattr(forward, "_orig_mod", forward)
    return original


@contextmanager
def hooked(layers: Sequence[nn.Module], make: Any, before: bool) -> Iterator[None]:
    """Hooks on each layer, removed afterwards whatever happens."""
    handles = []
    try:
        for i, layer in enumerate(layers):
            if before:
                handles.append(layer.register_forward_pre_hook(make(i)))
            else:
                handles.append(layer.register_forward_hook(make(i)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_values(
    forward: Forward, arguments: Sequence[Any], layers: Sequence[nn.Module], before: bool
) -> tuple[list[tuple[Tensor, ...]], list[bool]]:
    """Outputs (or inputs, if ``before``) of the layers in one run, each as a tuple of tensors, and
    whether it is one to the user: a tensor beside other things (a state, None) stands alone."""
    seen: dict[int, Any] = {}

    def make(i: int) -> Any:
        if before:
            return lambda module, given: seen.__setitem__(i, given)
        return lambda module, given, out: seen.__setitem__(i, out)

    with hooked(layers, make, before):
        forward(*arguments)
    values, tuples = [], []
    for i, layer in enumerate(layers):
        if i not in seen:
            raise fail_value("layer", "a module that forward calls", type(layer).__name__)
        v = seen[i]
        found = tuple(t for t in as_tuple(v) if isinstance(t, Tensor))
        if not found:
            raise fail_type("layer", "a module with tensors among its values", v)
        alone = len(found) == 1 and (before or len(v) > 1)
        tuples.append(isinstance(v, (tuple, list)) and not alone)
        values.append(found)
    return values, tuples


def _put(tensors: Sequence[Tensor], value: Any) -> Any:
    """A layer's value with these in place of its tensors, everything else as it is."""
    if isinstance(value, Tensor):
        return tensors[0]
    left = iter(tensors)
    make = getattr(type(value), "_make", type(value))  # a named tuple takes its fields apart
    return make([next(left) if isinstance(t, Tensor) else t for t in value])


class _Replaced:
    """forward with the layers' values in front of its arguments."""

    def __init__(
        self,
        forward: Forward,
        layers: Sequence[nn.Module],
        counts: Sequence[int],
        before: bool,
    ) -> None:
        self.forward, self.layers, self.counts, self.before = forward, layers, counts, before

    def __call__(self, *arguments: Any) -> Any:
        total = sum(self.counts)
        values, rest = arguments[:total], arguments[total:]
        starts = [sum(self.counts[:i]) for i in range(len(self.layers))]

        def make(i: int) -> Any:
            own = values[starts[i] : starts[i] + self.counts[i]]
            return lambda module, *seen: _put(own, seen[-1])  # its inputs, or its outputs behind

        with hooked(self.layers, make, self.before):
            return self.forward(*rest)


def _rows(value: Tensor, batch: int) -> Tensor:
    """Values with the batch in front; what is the same for all samples is repeated."""
    if value.shape[:1] == (batch,):
        return value
    if value.shape[:1] == (1,):
        return value.expand(batch, *value.shape[1:])
    raise fail_value("layer", f"values with the batch {batch} first", tuple(value.shape))


def layer_integrated_gradients(
    forward: Forward,
    layer: nn.Module | Sequence[nn.Module],
    inputs: Any,
    baselines: Any = None,
    target: Any = None,
    *,
    additional_forward_args: Any = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    tol: float | None = None,
    max_steps: int | None = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    attribute_to_layer_input: bool = False,
    create_graph: bool = False,
    multi_target: bool = False,
    multiply_by_inputs: bool = True,
    compat_trapezoid: bool = False,
    backend: str | None = None,
) -> tuple[Any, Info]:
    """Integrated gradients on the straight path between a layer's values at baselines and inputs.

    Args:
        layer: a module that ``forward`` calls, or several, whose paths are walked together.
        inputs, baselines: of ``forward``: tensors of any dtype (token ids), the batch first.
            Baselines None: zeros.
        attribute_to_layer_input: the layer's inputs instead of its outputs.
        The rest: as in ``integrated_gradients``.

    Returns:
        Attributions like the layer's values (a tuple if it has several, a list for several
        layers), and ``Info`` with delta.
    """
    if not callable(forward):
        raise fail_type("forward", "a callable", forward)
    forward = eager(forward)
    several = isinstance(layer, (list, tuple))
    layers: list[Any] = list(as_tuple(layer)) if several else [layer]
    for one in layers:
        if not isinstance(one, nn.Module):
            raise fail_type("layer", "a torch.nn.Module or a list of them", one)
    given = as_tuple(inputs)
    if not given or not all(isinstance(t, Tensor) and t.dim() for t in given):
        raise fail_type("inputs", "tensors with the batch first", inputs)
    flags(
        attribute_to_layer_input=attribute_to_layer_input, create_graph=create_graph,
        multi_target=multi_target, multiply_by_inputs=multiply_by_inputs,
        compat_trapezoid=compat_trapezoid,
    )  # fmt: skip
    for t in given:
        readable("inputs", t)
    if not len(given[0]):
        raise fail_value("inputs", "at least one sample", tuple(given[0].shape))
    start = _start(baselines, given)
    narrow = narrow_dtype(forward)
    if narrow is not None:
        given, start = (
            tuple(t.to(narrow) if t.dtype == torch.float32 else t for t in values)
            for values in (given, start)
        )
    args = arguments_of(additional_forward_args)
    integer_between("n_steps", n_steps, 1, 2**31)
    one_of("method", method, quadrature.METHODS)
    limits = Limits.of(memory_budget, internal_batch_size)
    before, batch = attribute_to_layer_input, given[0].shape[0]
    with frozen(forward, not create_graph), torch.set_grad_enabled(create_graph):
        ends = []
        for values in (given, start):
            found, tuples = layer_values(forward, (*values, *args), layers, before)
            ends.append([_rows(t, batch) for v in found for t in v])
            counts = [len(v) for v in found]
        tensors = check_inputs(tuple(ends[0]))
        layout = spaces(forward, tensors)
        x, base = (tuple(s.flat(t) for s, t in zip(layout, e, strict=True)) for e in ends)
        problem = Problem(
            _Replaced(forward, layers, counts, before),
            layout,
            x,
            (*given, *args),
            Target.of(target, batch, multi_target),
            create_graph,
        )
        chosen = _backends.resolve("path_integral", backend, x[0])
        if tol is not None:
            rows, info = adaptive(problem, base, tol, max_steps, limits, chosen)
        else:
            if method == "riemann_trapezoid" and compat_trapezoid:
                method = quadrature.COMPAT_TRAPEZOID
            rows, info = fixed(
                problem, base, method, n_steps, limits, chosen, True, Shards(), multiply_by_inputs
            )
    flat = shaped(rows, layout, problem.target, False)
    split = []
    for i, count in enumerate(counts):
        own = flat[sum(counts[:i]) : sum(counts[:i]) + count]
        split.append(tuple(own) if tuples[i] else own[0])
    return (split if several else split[0]), info


def change_between(
    forward: Forward, start: Any, end: tuple[Tensor, ...], target: Any, additional_forward_args: Any
) -> Tensor:
    """F(end) - F(start) of inputs of any dtype, (B,)."""
    if not all(isinstance(t, Tensor) and t.dim() for t in end):
        raise fail_type("end_point", "tensors with the batch first", end)
    args = arguments_of(additional_forward_args)
    batch = end[0].shape[0]
    chosen = Target.of(target, batch)
    with torch.no_grad():
        top, bottom = (
            chosen.pick(forward(*values, *args), 1, batch)[0]
            for values in (end, _start(start, end, "start_point"))
        )
    change: Tensor = top - bottom
    return change


def _start(
    baselines: Any, given: tuple[Tensor, ...], name: str = "baselines"
) -> tuple[Tensor, ...]:
    """Baselines in the shape of the inputs."""
    chosen = (None,) * len(given) if baselines is None else as_tuple(baselines)
    if len(chosen) != len(given):
        raise fail_value(name, f"one for each of {len(given)} inputs", len(chosen))
    found = []
    for b, x in zip(chosen, given, strict=True):
        if isinstance(b, Tensor):
            readable(name, b)
        if isinstance(b, Tensor) and b.dim() > 0:
            if b.shape[1:] != x.shape[1:] or b.shape[0] not in (1, x.shape[0]):
                raise fail_value(name, f"a number or shape {tuple(x.shape)}, or 1 in place "
                                 "of the batch", tuple(b.shape))  # fmt: skip
            dtype = x.dtype if x.is_floating_point() else b.dtype
            found.append(b.to(x.device, dtype).expand(x.shape))
            continue
        if b is not None and (isinstance(b, bool) or not isinstance(b, (int, float, Tensor))):
            raise fail_type(name, "a tensor or a number", b)
        found.append(filled(name, x, 0 if b is None else b, x.dtype))
    return tuple(found)
