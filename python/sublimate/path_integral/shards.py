"""Work spread over the processes of a torch.distributed group, joined by one all-reduce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import fail_type, one_of
from .arguments import fail_value
from .chunks import Problem


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A 0-dim int64 seed; None draws one from torch's generator."""
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64).to(device)
    return torch.as_tensor(seed, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Shards:
    """This process's part: every ``count``-th path point, or a block of samples."""

    group: Any = None
    kind: str = "points"
    rank: int = 0
    count: int = 1

    @staticmethod
    def of(group: Any, kind: str, create_graph: bool) -> Shards:
        if group is None and kind == "points":
            return _ALONE
        one_of("shard", kind, ("points", "samples"))
        if group is None:
            return _ALONE
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise fail_type("group", "a torch.distributed.ProcessGroup or None", group)
        if create_graph:
            raise fail_value("group", "None with create_graph (gradients do not cross processes)",
                             "a group")  # fmt: skip
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("group: torch.distributed is not initialised in this process")
        return Shards(group, kind, dist.get_rank(group), dist.get_world_size(group))

    @property
    def by_points(self) -> bool:
        return self.count > 1 and self.kind == "points"

    def own(self, total: int) -> slice:
        """The points of this process, of ``total``."""
        return slice(self.rank, total, self.count) if self.by_points else slice(0, total)

    def seed(self, seed: Any, device: torch.device) -> Tensor:
        """``seed_tensor``; one drawn by chance is that of the group's first process."""
        found = seed_tensor(seed, device)
        if seed is None and self.by_points:
            dist.broadcast(found, dist.get_global_rank(self.group, 0), self.group)
        return found

    def nodes(self, nodes: Callable[..., Any]) -> Callable[..., Any]:
        """This process's nodes of a rule; where there are more processes than nodes, a node of
        weight 0."""
        if not self.by_points:
            return nodes

        def own(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            alpha, weights = nodes(dtype)
            part = self.own(alpha.shape[0])
            if self.rank >= alpha.shape[0]:
                return alpha[:1], torch.zeros_like(weights[:, :1])
            return alpha[part].contiguous(), weights[:, part].contiguous()

        return own

    def reduce(self, acc: list[list[Tensor]]) -> list[list[Tensor]]:
        """Sums [target][input] over all processes."""
        if not self.by_points:
            return acc
        flat = self._sum([t for inputs in acc for t in inputs])
        joined = iter(flat)
        return [[next(joined) for _ in inputs] for inputs in acc]

    def _sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """All-reduced copies, in one message of the widest dtype."""
        wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        message = torch.cat([t.reshape(-1).to(wide) for t in tensors])
        dist.all_reduce(message, group=self.group)
        parts = message.split([t.numel() for t in tensors])
        return [p.view(t.shape).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]

    def over_samples(
        self,
        problem: Problem,
        base: tuple[Tensor, ...],
        run: Callable[[Problem, tuple[Tensor, ...]], tuple[list[list[Tensor]], Any]],
    ) -> tuple[list[list[Tensor]], Any]:
        """``run`` on this process's samples; every process gets the results of all."""
        if self.count == 1 or self.kind == "points":
            return run(problem, base)
        batch = problem.batch
        if batch < self.count:
            raise fail_value("inputs", f"at least {self.count} samples to share out", batch)
        part = slice(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)
        own = tuple(b if b.shape[0] == 1 else b[part] for b in base)
        rows, info = run(problem.select(part), own)
        fields = ("delta", "error", "size", "converged", "steps")
        values = [(n, getattr(info, n, None)) for n in fields]
        named = [n for n, v in values if v is not None and v.numel()]
        extra = [getattr(info, n) for n in named]
        wide = [self._place(r, batch, part, 0) for inputs in rows for r in inputs]
        wide += [self._place(t.double(), batch, part, t.dim() - 1) for t in extra]
        summed = iter(self._sum(wide))
        found = [[next(summed) for _ in inputs] for inputs in rows]
        for name, t in zip(named, extra, strict=True):
            value = next(summed)
            setattr(info, name, value > 0 if t.dtype == torch.bool else value.to(t.dtype))
        return found, info

    @staticmethod
    def _place(t: Tensor, batch: int, part: slice, dim: int) -> Tensor:
        shape = list(t.shape)
        shape[dim] = batch
        full = t.new_zeros(shape)
        full.narrow(dim, part.start, part.stop - part.start).copy_(t)
        return full


_ALONE = Shards()
