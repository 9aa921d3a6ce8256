"""The whole solver: starts, local search, restarts and their fusion, and what is told about it.

Quality comes from the local search, not from the contraction, so starts are chosen by speed, and
more of them for their difference. A restart's result is fused with the best so far: the common
refinement of the two is contracted and searched as an instance of its own, which finds what is best
of both. All decisions are made per instance, so a batch gives what its instances give one by one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._philox import uniform
from . import refine as search
from .autograd import ops
from .lazy import lazy
from .level import Level, Partition, instance_of, objective_of, partition_of
from .ops import runs_on
from .progress import Report
from .rounds import contract_in_rounds, greedy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Instances up to this size also start from exact greedy contraction, and chains follow every
#: restart; up to the second, chains polish the best of several restarts; larger ones do without.
SMALL, MEDIUM = 2048, 20_480
#: Starts by size class; further restarts dissolve parts of the best so far.
STARTS = (("star", "average", "gaec"), ("star", "average"), ("star", "average"))
#: Share of the clusters that a restart dissolves.
DISSOLVED = 0.3
#: Chains look at so many of the nearest clusters (0: all) by size class, for so many rounds.
NEIGHBORS, CHAIN_ROUNDS = (0, 10, 10), 20
#: What an improvement has to be, relative to the objective: more than rounding.
TOLERANCE = 1e-12


@dataclass
class MulticutInfo:
    """What is known of a result.

    Attributes:
        objective: cost of the labels; 0 is all in one cluster. A float, or (B,) for a batch.
        bound: no labels cost less: the sum of min(0, s_ij).
        gap: (objective - bound) / |objective|; 0 proves that the labels are optimal.
        rounds: by phase: rounds of contraction and sweeps of local search, all restarts together.
        seconds: by phase.
        backends: by phase: whose kernels ran, e.g. {"star": "cuda", "kernighan-lin": "cpu"}. Chains
            and the greedy part of "lazy" are sequential and run on the host for tensors of a GPU
            too, with Triton exact greedy contraction as well (also where clusters join in "moves").
        starts: (name, objective after local search) of each start, the objective summed over a
            batch.
        bytes: memory taken at once beyond features and labels, by the all-pairs pass: its packed
            copy of the features, partners and values.
    """

    objective: float | Tensor
    bound: float | Tensor
    gap: float | Tensor
    rounds: dict[str, int]
    seconds: dict[str, float]
    backends: dict[str, str]
    starts: list[tuple[str, float]]
    bytes: int

    def single(self) -> MulticutInfo:
        """That of the only instance, with floats."""
        numbers = (float(torch.as_tensor(t)[0]) for t in (self.objective, self.bound, self.gap))
        objective, bound, gap = numbers
        return replace(self, objective=objective, bound=bound, gap=gap)


@dataclass
class _Log:
    """Counts rounds and seconds by phase, and reports progress."""

    report: Report | None
    total: int = 1
    done: int = 0
    rounds: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    starts: list[tuple[str, float]] = field(default_factory=list)
    _phase: str | None = None
    _since: float = 0.0

    def enter(self, phase: str) -> None:
        self.leave()
        self._phase, self._since = phase, time.perf_counter()
        self.tell(phase)

    def leave(self) -> None:
        if self._phase is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + spent
            self._phase = None

    def count(self, rounds: int) -> None:
        if self._phase is not None:
            self.rounds[self._phase] = self.rounds.get(self._phase, 0) + rounds

    def step(self) -> None:
        self.done += 1

    def tell(self, what: str) -> None:
        if self.report is not None:
            self.report(min(self.done, self.total), self.total, what)


def solve(
    x: Tensor,
    weights: Tensor | None,
    offsets: Tensor,
    alpha: float,
    negative_dims: int,
    *,
    method: str,
    refine: str | None,
    restarts: int,
    backend: str,
    report: Report | None = None,
    group: ProcessGroup | None = None,
    want_info: bool = False,
) -> tuple[Tensor, MulticutInfo | None]:
    """Labels [N] that start from 0 in each instance, by first appearance, and what is known.

    Args:
        x: [N, d] float32 or float64, contiguous; weights: [N] of that dtype or None.
        offsets: [B + 1] int64 on x's device.
    """
    level = Level(x, weights, offsets, alpha, negative_dims, backend, group)
    sizes = offsets.diff()
    classes = (sizes > SMALL).long() + (sizes > MEDIUM)
    present = sorted(set(classes.tolist()))
    log = _Log(report, total=max(1, 2 * restarts * len(present) + want_info))
    if len(present) <= 1:
        size_class = present[0] if present else 0
        partition = _solve_class(level, method, refine, restarts, size_class, log)
        labels = partition.within_instances(offsets)
    else:
        labels = torch.empty_like(level.instance())
        for size_class in present:
            rows = (classes[level.instance()] == size_class).nonzero()[:, 0]
            lengths = sizes[classes == size_class]
            part = replace(
                level,
                features=x[rows],
                weights=None if weights is None else weights[rows],
                offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
            )
            partition = _solve_class(part, method, refine, restarts, size_class, log)
            labels[rows] = partition.within_instances(part.offsets)
    info = _info(level, labels, log) if want_info else None
    log.leave()
    log.done = log.total
    log.tell("done")
    return labels, info


def _info(level: Level, labels: Tensor, log: _Log) -> MulticutInfo:
    log.enter("bound")
    named = labels + level.offsets[level.instance()]
    objective = objective_of(level, partition_of(named, level.offsets, len(level)))
    bound = ops.multicut_negative_sum(*level.nodes, level.backend)
    # Below zero by rounding only: a bound is no better than the objective it is to prove.
    gap = ((objective - bound) / objective.abs().clamp_min(1e-300)).clamp_min(0)
    log.leave()
    n, d = level.features.shape
    packed = n * (d + 1) * level.features.element_size()
    partners = (torch.get_num_threads() + 1) * n * (level.features.element_size() + 8)
    return MulticutInfo(
        objective,
        bound,
        gap,
        log.rounds,
        log.seconds,
        {phase: _kernels_of(phase, level.backend) for phase in log.seconds},
        log.starts,
        packed + partners,
    )


#: Ops of the phases that have others than passes over pairs and sums.
_SEQUENTIAL = {
    "gaec": ("gaec",),
    "lazy": ("topk", "lazy"),
    "kernighan-lin": ("kernighan_lin",),
    "moves": ("move", "gaec"),
    "fusion": ("move", "gaec", "kernighan_lin"),
}


def _kernels_of(phase: str, backend: str) -> str:
    """The backends whose kernels a phase runs, the chosen one first."""
    ran = dict.fromkeys(runs_on(op, backend) for op in _SEQUENTIAL.get(phase, ("topk",)))
    return ", ".join(ran)


# ----------------------------------------------------------------------- instances of like size


def _solve_class(
    level: Level, method: str, refine: str | None, restarts: int, size_class: int, log: _Log
) -> Partition:
    first = "star" if method == "auto" else method
    names = [first, *(s for s in STARTS[size_class] if s != first)][:restarts]
    # The tree of average linkage, where it is asked for, is to be that of exact arithmetic.
    exact = first == "average" and level.backend != "triton"
    best = _refined(level, _start(level, first, log, exact), refine, restarts, size_class, log)
    cost = objective_of(level, best) if restarts > 1 else None
    if cost is not None:
        log.starts.append((first, float(cost.sum())))
    for r in range(1, restarts):
        assert cost is not None
        name = names[r] if r < len(names) else "dissolve"
        if name == "dissolve":
            log.enter("dissolve")
            start = dissolve(level, best, r)
        else:
            start = _start(level, name, log)
        found = _refined(level, start, refine, restarts, size_class, log)
        found_cost = objective_of(level, found)
        log.starts.append((name, float(found_cost.sum())))
        best, cost, other = _better(level, best, cost, found, found_cost)
        if refine is not None:
            log.enter("fusion")
            fused = fuse(level, best, other)
            best, cost, _ = _better(level, best, cost, fused, objective_of(level, fused))
    if restarts > 1 and refine == "moves" and size_class == 1:
        best = _chains(level, best, size_class, log)
    return best


def _start(level: Level, name: str, log: _Log, exact: bool = False) -> Partition:
    """A first partition; ``exact``: in float64."""
    log.enter(name)
    if exact:
        wide = None if level.weights is None else level.weights.double()
        level = replace(level, features=level.features.double(), weights=wide)

    def tick(start: int, now: int) -> None:
        log.tell(f"{name}: {start} nodes, {now} clusters")

    if name == "gaec":
        partition, rounds = greedy(level), 1
    elif name == "lazy":
        partition, rounds = lazy(level, tick)
    else:
        partition, rounds = contract_in_rounds(level, name, tick)
    log.count(rounds)
    log.step()
    return partition


def _refined(
    level: Level,
    partition: Partition,
    refine: str | None,
    restarts: int,
    size_class: int,
    log: _Log,
) -> Partition:
    if refine is None:
        log.step()
        return partition
    log.enter("moves")
    partition, sweeps = search.moves(level, partition, lambda moved: log.tell(f"{moved} moved"))
    log.count(sweeps)
    if refine == "kernighan-lin" or (restarts > 1 and size_class == 0):
        partition = _chains(level, partition, size_class, log)
    log.step()
    return partition


def _chains(level: Level, partition: Partition, size_class: int, log: _Log) -> Partition:
    """Chains and moves by turns until chains bring nothing."""
    for _ in range(CHAIN_ROUNDS):
        log.enter("kernighan-lin")
        chained, gains = search.kernighan_lin(level, partition, NEIGHBORS[size_class], CHAIN_ROUNDS)
        log.count(1)
        if not bool((gains > 0).any()):
            break
        log.enter("moves")
        partition, sweeps = search.moves(level, chained)
        log.count(sweeps)
    return partition


def _better(
    level: Level, first: Partition, first_cost: Tensor, second: Partition, second_cost: Tensor
) -> tuple[Partition, Tensor, Partition]:
    """The better of two partitions in each instance, its cost, and the other one."""
    wins = second_cost < first_cost - TOLERANCE * first_cost.abs()
    if not bool(wins.any()):
        return first, first_cost, second
    if bool(wins.all()):
        return second, second_cost, first
    here = wins[level.instance()]
    names = first.count + second.count
    shifted = first.count + second.labels
    better = partition_of(torch.where(here, shifted, first.labels), level.offsets, names)
    other = partition_of(torch.where(here, first.labels, shifted), level.offsets, names)
    return better, torch.where(wins, second_cost, first_cost), other


# ---------------------------------------------------------------------------- from one to the next


def fuse(level: Level, best: Partition, other: Partition) -> Partition:
    """The best of two partitions: local search on what both keep together, starting from ``best``.

    O(m K d) a sweep for m parts of the common refinement, then moves of single nodes.
    """
    common = torch.unique(best.labels * other.count + other.labels, return_inverse=True)[1]
    parts = partition_of(common, level.offsets, len(level))
    sums, masses, _ = level.sums_of(parts.labels, parts.count)
    above = replace(level, features=sums, weights=masses, offsets=parts.offsets, group=None)
    named = torch.empty(parts.count, dtype=torch.int64, device=sums.device)
    named[parts.labels] = best.labels  # the same for all nodes of a part
    partition = partition_of(named, parts.offsets, best.count)
    partition, _ = search.moves(above, partition)
    partition, _ = search.kernighan_lin(above, partition, 10, CHAIN_ROUNDS)
    partition, _ = search.moves(level, partition.after(parts))
    return partition


def dissolve(level: Level, best: Partition, seed: int) -> Partition:
    """A start near ``best``: some of its clusters fall apart, and all is contracted in star rounds.

    Which ones: Philox numbers of (seed, number of the cluster within its instance).
    """
    within = torch.arange(best.count, device=best.labels.device)
    within = within - best.offsets[instance_of(best.offsets, best.count)]
    most = int(best.offsets.diff().max()) if best.count else 0
    falls = uniform(seed, most).to(within.device)[within] < DISSOLVED
    n = len(level)
    nodes = torch.arange(n, device=within.device)
    labels = torch.where(falls[best.labels], best.count + nodes, best.labels)
    apart = partition_of(labels, level.offsets, best.count + n)
    partition, _ = contract_in_rounds(level.contract(apart), "star")
    return partition.after(apart)
