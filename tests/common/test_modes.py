"""``_modes.ordinary``: which calls may go past the dispatcher."""

from __future__ import annotations

import pytest
import torch
from sublimate._modes import ordinary
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Subclass(Tensor):
    pass


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def wrapped_by_a_transform_that_has_ended() -> Tensor:
    kept = []
    torch.func.vjp(lambda t: kept.append(t) or t * 2, torch.randn(3))
    return kept[0]


STRANGE = {
    "subclass": lambda: torch.randn(3).as_subclass(Subclass),
    "parameter": lambda: torch.nn.Parameter(torch.randn(3)),
    "lazy negative": lambda: torch._neg_view(torch.randn(3)),
    "lazy conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "fake": lambda: FakeTensorMode().from_tensor(torch.randn(3)),
    "dead transform": wrapped_by_a_transform_that_has_ended,
}


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", STRANGE)
def test_one_strange_tensor_is_enough(kind, position):
    tensors: list[Tensor | None] = [torch.randn(3), None, torch.randn(3)]
    assert ordinary(*tensors)
    tensors[position] = STRANGE[kind]()
    assert not ordinary(*tensors)


def test_whoever_watches_is_seen():
    x = torch.randn(3)
    with Watching():
        assert not ordinary(x)
    seen = []
    torch.func.grad(lambda t: seen.append(ordinary(x)) or t.sum())(x)
    torch.func.vmap(lambda t: seen.append(ordinary(x)) or t)(x)
    torch.jit.trace(lambda t: seen.append(ordinary(x)) or t + 1, (x,), check_trace=False)
    assert len(seen) >= 3 and not any(seen)
    compiled = torch.compile(lambda t: t + ordinary(t), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)
    assert ordinary(x)
