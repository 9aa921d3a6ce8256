"""Where a layer's seed comes from: base seed, layer, step, micro-batch and rank, hashed.

A seed is an int64 tensor on the layer's device, made by a few operations there, without the host
waiting: (key + count G + rank term) mod 2**63. The key is Philox's hash of base seed and layer, the
count advances with every training forward (so that micro-batches of one step differ too), G is
odd, so that no two counts of a layer agree, and the rank's term is Philox's hash of the rank.

Under activation checkpointing a forward runs again inside backward and must draw what it drew. See
``Replay`` for how the call is found.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor

from .. import _checks, _philox
from .._modes import ordinary_tensors

MASK = 2**63 - 1
GOLDEN = 0x1E3779B97F4A7C15  # odd, below 2**61: counts times it stay apart modulo 2**63
_STREAM = 6


def mix(*numbers: int) -> int:
    """Philox's hash of integers in [0, 2**61), in order: an int in [0, 2**63)."""
    key = 0
    with ordinary_tensors():
        for number in numbers:
            counter = torch.tensor([4 * number, 4 * number + 1], dtype=torch.int64)
            low, high = _philox.words(key, counter, stream=_STREAM).tolist()
            key = (low | high << 32) & MASK
    return key


@functools.cache
def rank_term(rank: int) -> int:
    """What a rank adds to the seeds of all its layers; nothing for rank 0."""
    return mix(2**60, rank) if rank else 0


@torch.compiler.assume_constant_result
def default_rank_term() -> int:
    """That of this process in the default process group, if there is one."""
    return rank_term(dist.get_rank() if dist.is_available() and dist.is_initialized() else 0)


def resolve_rank(rank: Any) -> int | None:
    """An int, a process group (this process's rank in it) or None for the default group's."""
    if rank is None:
        return None
    if dist.is_available() and isinstance(rank, dist.ProcessGroup):
        return dist.get_rank(rank)
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise _checks.fail_type("rank", "an int, a torch.distributed.ProcessGroup or None", rank)
    if rank < 0:
        raise _checks.fail_value("rank", "an int >= 0", rank)
    return rank


class step:
    """Context manager: seeds inside come from (step, micro_batch) and not from the layers' counts.

    For schedules whose forwards are not in the order of training (pipelines, replays). The counts
    stay as they are. Layers called several times inside draw a fresh seed each time.

    Args:
        step: number of the training step, >= 0.
        micro_batch: number within the step, >= 0.
    """

    active: step | None = None

    def __init__(self, step: int, micro_batch: int = 0) -> None:
        _checks.integer_between("step", step, 0, 2**60)
        _checks.integer_between("micro_batch", micro_batch, 0, 2**60)
        # On the CPU: added to a tensor elsewhere it is passed by value, and torch.compile takes
        # it as an input, where a Python integer would be compiled in.
        self.term = torch.tensor(mix(step, micro_batch), dtype=torch.int64)
        self.calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __enter__(self) -> step:
        self.outer, step.active = step.active, self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        step.active = self.outer


# ---------------------------------------------------------------------------------- replaying


class _Calls:
    """Seeds that each layer drew in one checkpointed region, and how far replays have come."""

    def __init__(self) -> None:
        self.seeds: dict[int, list[Tensor]] = {}
        self.replayed: dict[tuple[int, int], int] = {}


_FRAME: Any = getattr(torch.utils.checkpoint, "_CheckpointFrame", None)
_regions: weakref.WeakKeyDictionary[Any, _Calls] = weakref.WeakKeyDictionary()


def _region() -> Any:
    """The non-reentrant checkpoint that is running or replaying here, or None.

    torch gives it no public name: it stands in the closure of the saved-tensor hook on top.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or _FRAME is None:
        return None
    for cell in getattr(inspect.unwrap(hooks[0]), "__closure__", None) or ():
        value = cell.cell_contents
        value = value() if isinstance(value, weakref.ref) else value
        if isinstance(value, _FRAME):
            return value
    return None


class Replay:
    """Which seed a forward inside backward had when it ran first.

    In a non-reentrant checkpoint (torch's default): exactly, by the region and the number of the
    layer's call in it, whatever the order of forwards and backwards. Elsewhere (reentrant
    checkpoints, wrappers of other libraries): the layer's last forward outside backward, which is
    the same where every forward is followed by its backward and runs the layer once.

    A wrong guess, or a forward of which nothing is known, draws other random numbers than the
    first time did. The gradient is unbiased all the same, because sketch and seed of the replay
    serve that replay alone.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def remember(self, seed: Tensor) -> None:
        self.last = seed
        region = _region()
        if region is not None:
            calls = _regions.setdefault(region, _Calls())
            calls.seeds.setdefault(id(self), []).append(seed)

    def recall(self) -> Tensor | None:
        region = _region()
        calls = None if region is None else _regions.get(region)
        if calls is not None and id(self) in calls.seeds:
            drawn = calls.seeds[id(self)]
            key = id(self), torch._C._current_graph_task_id()
            place = calls.replayed.get(key, 0)
            calls.replayed[key] = place + 1
            if place < len(drawn):
                return drawn[place]
        return self.last


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return torch._C._current_graph_task_id() != -1
