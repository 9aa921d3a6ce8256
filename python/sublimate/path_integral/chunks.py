"""A path in pieces: how many rows go through the model at once, and the gradients of a piece."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import fail_type
from .._modes import ordinary
from . import sequential
from .arguments import (
    Forward,
    Space,
    Target,
    fail_value,
    parameters_of,
    repeat_args,
    select_args,
)

#: Without a budget: rows whose saved activations stay in the caches, but no fewer than _LEAST_ROWS,
#: and up to _GOOD_ROWS for the sake of matrix products while they take no more than _MOST_BYTES.
#: On CPUs 40 to 200 rows at once are fastest for convolutions and transformers, 1600 for
#: perceptrons of width 512, 3000 for those of width 64 (bench/path_integral/calls.py).
_DEFAULT_BYTES = 5 * 2**20
_LEAST_ROWS, _GOOD_ROWS = 64, 1600
_MOST_BYTES = 40 * 2**20
_TINY = 2**19  # bytes of all points together: not worth measuring the model


NO_PATH = (
    "forward: expected an output that depends on inputs by differentiable operations, got one "
    "without a gradient path"
)

# -------------------------------------------------------------------------------- model's state


def modules_of(forward: Forward) -> list[nn.Module]:
    """Modules that a callable is, is bound to, is a partial of, or closes over."""
    if isinstance(forward, nn.Module):
        return [forward]
    found: list[nn.Module] = []
    pending: list[Any] = [forward]
    seen: set[int] = set()
    while pending:
        f = pending.pop()
        if id(f) in seen:
            continue
        seen.add(id(f))
        if isinstance(f, nn.Module):
            found.append(f)
        elif isinstance(f, functools.partial):
            pending += [f.func, *f.args, *f.keywords.values()]
        elif callable(f):
            pending.append(getattr(f, "__self__", None))
            for cell in getattr(f, "__closure__", None) or ():
                try:
                    pending.append(cell.cell_contents)
                except ValueError:  # an empty cell
                    continue
    return found


class frozen:
    """Parameters that ``forward`` can be seen to use ask for no gradient inside, so that autograd
    keeps no activations for them; exactly as before afterwards, also after an exception."""

    def __init__(self, forward: Forward, freeze: bool) -> None:
        self.asking: list[Tensor] = []
        if freeze:
            for module in modules_of(forward):
                self.asking += [p for p in parameters_of(module) if p.requires_grad and p.is_leaf]

    def __enter__(self) -> None:
        for p in self.asking:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.asking:
            p.requires_grad_(True)


# ---------------------------------------------------------------------------------- the gradient


def _backward(
    root: Tensor, start: Tensor, leaves: list[Tensor], keep: bool, create_graph: bool
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``; straight to its engine where what it checks is known to hold, since
    the checks cost a small model a tenth of its time."""
    found: tuple[Tensor | None, ...]
    if create_graph or not ordinary(root, start, *leaves):
        found = torch.autograd.grad(
            root, leaves, start, retain_graph=keep or create_graph, create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
        return found
    found = torch.autograd.graph._engine_run_backward(
        (root,), (start,), keep, False, tuple(leaves), allow_unreachable=True,
        accumulate_grad=False,
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class Problem:
    """A scalar of each sample: what is differentiated, along with all that it is called with.

    Attributes:
        x: flattened inputs [B, E], one for each input tensor.
        args: additional arguments of ``forward``.
        create_graph: gradients are themselves differentiable.
        network: the structure of ``forward``, if it is known.
    """

    forward: Forward
    layout: tuple[Space, ...]
    x: tuple[Tensor, ...]
    args: tuple[Any, ...]
    target: Target
    create_graph: bool = False
    network: sequential.Network | None = None

    @property
    def batch(self) -> int:
        return self.x[0].shape[0]

    def select(self, rows: slice | Tensor) -> Problem:
        """The same of some samples."""
        return Problem(
            self.forward,
            self.layout,
            tuple(x[rows] for x in self.x),
            select_args(self.args, rows, self.batch),
            self.target.select(rows),
            self.create_graph,
            self.network,
        )

    def outputs(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Values at points z, each [K, B, E]: (K * B,) for each target."""
        points = z[0].shape[0]
        leaves = [s.as_model_input(t) for s, t in zip(self.layout, z, strict=True)]
        output = self.forward(*leaves, *repeat_args(self.args, points, self.batch))
        return self.target.pick(output, points, self.batch)

    def gradients(
        self,
        z: Sequence[Tensor],
        front: sequential.Front | None = None,
        ends: Sequence[Tensor] = (),
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """For each target: its values (K * B,), and gradients [K, B, E] for each input.

        The forward runs once, then one backward for each target. With a ``front`` (one linear
        layer of a perceptron), z has values of it, and ``ends`` what they were made from.
        """
        points = z[0].shape[0]
        if self.network is not None and (front is not None or self.direct):
            chain = self.network.chain if front is None else front.rest
            rows = z[0].flatten(0, 1)
            if front is None:
                rows = self.network.rows(rows)
            for values, grad in sequential.gradients(
                chain, rows, self.target, points, self.batch, self.create_graph,
                front.linear if front is not None else None,
                () if front is None else (*self.x, *ends),
            ):  # fmt: skip
                if front is None:
                    yield values, [self.network.flat(grad, points, self.batch)]
                else:
                    yield values, [grad.reshape(points, self.batch, -1)]
            return
        with torch.enable_grad():
            leaves = []
            for space, t in zip(self.layout, z, strict=True):
                leaf = space.as_model_input(t)
                leaves.append(leaf if leaf.requires_grad else leaf.requires_grad_())
            output = self.forward(*leaves, *repeat_args(self.args, points, self.batch))
            if self.create_graph:
                picked = self.target.pick(output, points, self.batch)
                picked = [v.real if v.is_complex() else v for v in picked]
                roots = [(v, torch.ones_like(v), v.detach()) for v in picked]
            else:
                roots = self.target.roots(output, points, self.batch)
            last = len(roots) - 1
            for i, (root, start, values) in enumerate(roots):
                if not root.requires_grad:
                    raise RuntimeError(NO_PATH)
                found = _backward(root, start, leaves, i < last, self.create_graph)
                if all(g is None for g in found):
                    raise RuntimeError(
                        "forward: expected an output that depends on inputs, got one that depends "
                        "on none of them"
                    )
                flat = [
                    torch.zeros_like(t) if g is None else s.flat_gradient(g, points)
                    for s, g, t in zip(self.layout, found, z, strict=True)
                ]
                yield values, flat

    @property
    def direct(self) -> bool:
        """Whether gradients need nothing of autograd, so that parameters need not be frozen."""
        return self.network is not None and self.network.direct > self.create_graph


# -------------------------------------------------------------------------------------- chunking


_saved: weakref.WeakKeyDictionary[Any, dict[Any, int]] = weakref.WeakKeyDictionary()


def saved_per_row(problem: Problem) -> int:
    """Bytes autograd keeps for one row of the model, from a trial on one sample; remembered."""
    owner: Any = getattr(problem.forward, "_orig_mod", problem.forward)
    key = (
        getattr(owner, "training", None),
        tuple((s.shape, s.points) for s in problem.layout),
        tuple(tuple(a.shape[1:]) for a in problem.args if isinstance(a, Tensor)),
    )
    try:
        known = _saved.setdefault(owner, {})
    except TypeError:  # no weak reference to a bound method
        known = {}
    if key not in known:
        known[key] = _trial(owner, problem)
    return known[key]


def _changes_in_training(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(m, kinds) for m in module.modules())


def _trial(forward: Forward, problem: Problem) -> int:
    """Bytes of the storages that a forward of one sample saves, parameters not counted.

    A module in training mode is not tried: it would draw random numbers or move its averages.
    """
    if any(m.training and _changes_in_training(m) for m in modules_of(forward)):
        return _DEFAULT_BYTES
    kept: dict[tuple[int, int], int] = {}
    own = {p.untyped_storage().data_ptr() for m in modules_of(forward) for p in m.parameters()}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return t

    one = problem.select(slice(0, 1))
    leaves = [
        s.as_model_input(x[None].to(s.points).clone()).requires_grad_()
        for s, x in zip(one.layout, one.x, strict=True)
    ]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = forward(*leaves, *one.args)
    del output
    return sum(kept.values())


@dataclass(frozen=True)
class Limits:
    """What bounds a chunk: bytes, rows, or neither (then the default)."""

    memory_budget: int | None = None
    rows: int | None = None

    @staticmethod
    def of(memory_budget: Any, internal_batch_size: Any) -> Limits:
        if memory_budget is None and internal_batch_size is None:
            return _FREE
        for name, value in (
            ("memory_budget", memory_budget),
            ("internal_batch_size", internal_batch_size),
        ):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise fail_type(name, "None or an int >= 1", value)
            if value < 1:
                raise fail_value(name, "an int >= 1", value)
        return Limits(memory_budget, internal_batch_size)

    def choose(self, problem: Problem, points: int) -> int:
        """Rows that go through the model at once."""
        total = max(1, points * problem.batch)
        if self.rows is not None and self.memory_budget is None:
            return min(total, self.rows)
        if self.memory_budget is None and total <= _LEAST_ROWS:
            return total
        own = sum(s.size * s.points.itemsize for s in problem.layout)
        if self.memory_budget is None and total * own <= _TINY:
            return total
        # Saved activations, as much again in passing, the points and their gradients.
        row = 2 * saved_per_row(problem) + 2 * own
        if problem.create_graph and self.memory_budget is None:
            return total  # everything is kept anyway
        if self.memory_budget is None:
            row = max(1, row)
            rows = max(_LEAST_ROWS, _DEFAULT_BYTES // row, min(_GOOD_ROWS, _MOST_BYTES // row))
        else:
            rows = max(1, self.memory_budget // max(1, row))
        if self.rows is not None:
            rows = min(rows, self.rows)
        return min(total, rows)


_FREE = Limits()


def pieces(total: int, most: int) -> list[slice]:
    """Slices of nearly equal length <= most that cover range(total)."""
    if total <= most:
        return [slice(0, total)]
    count = math.ceil(total / most)
    edges = [total * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def out_of_memory(error: RuntimeError) -> bool:
    """CUDA's error, or that of torch's CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def run_halving(rows: int, run: Callable[[int], Any]) -> tuple[Any, int]:
    """``run(rows)``, with half as many whenever memory runs out.

    Returns:
        Its result and the rows that fitted.
    """
    while True:
        try:
            return run(rows), rows
        except RuntimeError as error:
            if rows <= 1 or not out_of_memory(error):
                raise
        # Outside the handler: the failed chunk's tensors hang on its traceback.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = (rows + 1) // 2
