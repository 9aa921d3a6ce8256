"""What ``python -m sublimate check`` runs for this family.

Numbers are held to float64 arithmetic on the features as they are. Decisions (partners, clusters,
merges, labels) are compared on features that are small integers, where every value is exact in
every dtype, so that equal values really are equal and only the order of ties decides. (Kernels
multiply weights by the square root of alpha, so there alpha is a square.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .. import _parity
from .._dtypes import accumulator
from .._parity import Case, Measurement
from . import functional, pairs, reference
from .autograd import ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Variant -> (weighted, coordinates that count negatively).
VARIANTS = {"plain": (False, 0), "weights, signature": (True, 3)}
_N, _D, _ALPHA, _K = 233, 19, 0.25, 5


def unit_rows(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """(n, d) rows of length 1 around 12 centres, before rounding to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, _D, generator=generator, dtype=torch.float64)
    place = torch.randint(12, (n,), generator=generator)
    noise = torch.randn(n, _D, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(centres[place] + 0.9 * noise, dim=1).to(dtype)


def integer_rows(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(n, d) integers from -3 to 3 with many equal products, and weights 1 and 2."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-3, 4, (n, 6), generator=generator).to(dtype)
    return x, 1 + torch.randint(2, (n,), generator=generator).to(dtype)


def _weights(weighted: bool, dtype: torch.dtype) -> Tensor | None:
    return torch.linspace(0.5, 2, _N, dtype=torch.float64).to(dtype) if weighted else None


def _to(t: Tensor | None, device: str) -> Tensor | None:
    return None if t is None else t.to(device)


def _double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def _topk(dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    found = []
    acc = accumulator(dtype)
    for variant, (weighted, q) in VARIANTS.items():
        x, w = unit_rows(_N, dtype, 1), _weights(weighted, acc)
        values, columns = pairs.inner_product_topk(
            x.to(device), _K, alpha=_ALPHA, weights=_to(w, device), negative_dims=q, backend=backend
        )
        plain = reference.pair_values(x.to(acc), w, _ALPHA, q)
        truth = reference.pair_values(x.double(), _double(w), _ALPHA, q)
        truth.fill_diagonal_(-torch.inf)
        best = truth.topk(_K).values
        eager = plain.fill_diagonal_(-torch.inf).topk(_K).values
        found.append(_parity.compare(variant, "forward", values, eager, best, backward=False))
        chosen = truth.gather(1, columns.cpu())
        found.append(
            _parity.compare(variant, "forward", chosen.to(acc), eager, best, backward=False)
        )
    x, w = integer_rows(_N, dtype)
    _, columns = pairs.inner_product_topk(
        x.to(device), _K, alpha=4.0, weights=w.to(device), backend=backend
    )
    _, due = pairs.inner_product_topk(
        x.double(), _K, alpha=4.0, weights=w.double(), backend="reference"
    )
    found.append(_parity.equal("ties", "codes", columns.cpu() != due))
    return found


def _objective(dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    found = []
    acc = accumulator(dtype)
    labels = torch.arange(_N) % 7
    for variant, (weighted, q) in VARIANTS.items():
        x, w = unit_rows(_N, dtype, 2), _weights(weighted, acc)
        leaf = x.to(device).requires_grad_()
        alpha = torch.tensor(_ALPHA, dtype=acc, device=device, requires_grad=True)
        cost = functional.objective(
            leaf, labels.to(device), alpha, weights=_to(w, device), negative_dims=q, backend=backend
        )
        dx, dalpha = torch.autograd.grad(cost, (leaf, alpha))
        wide = x.double().requires_grad_()
        level = torch.tensor(_ALPHA, dtype=torch.float64, requires_grad=True)
        unit = torch.ones(_N, dtype=torch.float64) if w is None else w.double()
        values = wide @ reference.signed(wide, q).t() - level * torch.outer(unit, unit)
        truth = reference.objective(values, labels)
        tx, talpha = torch.autograd.grad(truth, (wide, level))
        eager = truth.detach().to(acc)
        found += [
            _parity.compare(variant, "forward", cost.to(acc), eager, truth, backward=False),
            _parity.compare(variant, "gradient", dx, tx.to(dtype), tx, backward=True),
            _parity.compare(variant, "gradient", dalpha, talpha.to(acc), talpha, backward=True),
        ]
    return found


def _bound(dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    found = []
    acc = accumulator(dtype)
    for variant, (weighted, q) in VARIANTS.items():
        x, w = unit_rows(_N, dtype, 3), _weights(weighted, acc)
        bound = functional.lower_bound(
            x.to(device), _ALPHA, weights=_to(w, device), negative_dims=q, backend=backend
        )
        truth = reference.pair_values(x.double(), _double(w), _ALPHA, q).clamp(max=0).triu(1).sum()
        plain = reference.pair_values(x.to(acc), w, _ALPHA, q).clamp(max=0).triu(1).sum()
        found.append(
            _parity.compare(variant, "forward", bound.to(acc), plain, truth, backward=False)
        )
    return found


def _decisions(op: str, dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    """One kernel on integers against the reference in float64: all decisions the same."""
    x, w = integer_rows(_N, dtype)
    offsets = torch.tensor([0, 100, 100, _N])
    labels = torch.arange(_N) % 9 + 9 * (torch.arange(_N) >= 100)
    slots = torch.tensor([0, 9, 9, 18])

    def run(name: str, where: str, kind: torch.dtype) -> list[Tensor]:
        put = lambda t: t.to(where)  # noqa: E731
        nodes = (put(x.to(kind)), put(w.to(kind)), put(offsets), 4.0, 1)
        if op == "gaec":
            return list(ops.multicut_gaec(*nodes, name)[:2])
        state = ops.multicut_contract(nodes[0], nodes[1], put(labels), 18, name)
        clusters = (put(labels), *state, put(slots))
        target, _ = ops.multicut_best_cluster(*nodes, *clusters, name)
        if op == "best cluster":
            return [target]
        order = put(torch.arange(_N))
        moved = ops.multicut_move(*nodes, *clusters, order, put(offsets), target, name)
        return [moved[0], moved[4]]

    got = run(backend, device, dtype)
    due = run("reference", "cpu", torch.float64)
    wrong = sum(int((a.cpu() != b).sum()) for a, b in zip(got, due, strict=True))
    return [_parity.equal("ties", "codes", wrong)]


def _labels(dtype: torch.dtype, backend: str, device: str) -> list[Measurement]:
    """The whole solver, its cost by the definition, and a certificate below it."""
    x = unit_rows(_N, dtype, 4)
    labels, info = functional.dense_multicut(
        x.to(device), alpha=_ALPHA, return_info=True, backend=backend
    )
    values = reference.pair_values(x.double(), None, _ALPHA)
    truth = reference.objective(values, labels.cpu())
    acc = accumulator(dtype)
    cost = torch.tensor(info.objective, dtype=acc)
    tight = functional.lower_bound(x.to(device), _ALPHA, labels=labels, backend=backend)
    slack = 1e-5 * abs(info.objective)
    above = max(info.bound, float(tight)) - info.objective
    return [
        _parity.compare("labels", "forward", cost, truth.to(acc), truth, backward=False),
        Measurement("certificate", "forward", max(above, 0.0), slack),
    ]


def cases(backend: str, device: str, quick: bool) -> Iterator[Case]:
    """Every op of the family on a backend in all dtypes, or in two.

    16-bit features are converted before all ops but top-k.
    """

    def case(op: str, dtype: torch.dtype, run: Callable[..., list[Measurement]]) -> Case:
        return Case("multicut", op, backend, device, dtype, partial(run, dtype, backend, device))

    for dtype in (DTYPES[0], DTYPES[2]) if quick else DTYPES:
        yield case("top-k", dtype, _topk)
        yield case("objective", dtype, _objective)
        yield case("lower bound", dtype, _bound)
        if dtype in (torch.float32, torch.float64):
            for op in ("best cluster", "move", "gaec"):
                yield case(op, dtype, partial(_decisions, op))
        yield case("dense multicut", dtype, _labels)
