"""Cases of the dense multicut kernels for cases.py, through the operators.

Features are small integers, so that sums are exact in any order and results equal to the last bit.
Sizes lie around tiles (64 and 128), warps and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from sublimate.multicut import ops  # noqa: F401  (registers the operators)
from torch import Tensor

Call = Callable[[str], tuple[Tensor, ...]]
run = torch.ops.sublimate
SIZES = ((0,), (1,), (2, 0, 63), (65,), (31, 1, 40), (130,))


def nodes(
    sizes: tuple[int, ...], d: int, dtype: torch.dtype, device: str, weighted: bool
) -> tuple[Tensor, Tensor | None, Tensor, float, int]:
    """Features that begin one element into their memory, so that no vector access is aligned."""
    g = torch.Generator().manual_seed(sum(sizes) + d)
    n = sum(sizes)
    room = torch.randint(-2, 3, (n * d + 1,), generator=g).to(dtype).to(device)
    weights = torch.randint(1, 3, (n,), generator=g).to(dtype).to(device) if weighted else None
    offsets = torch.tensor([0, *sizes]).cumsum(0).to(device)
    return room[1:].view(n, d), weights, offsets, 4.0, min(1, d - 1)


def cases(device: str) -> Iterator[Callable[[], None]]:
    for what, call in _calls(device):
        yield lambda w=what, c=call: compare(c, w)


def _calls(device: str) -> Iterator[tuple[str, Call]]:
    for dtype in (torch.float32, torch.float64):
        for at, sizes in enumerate(SIZES):
            d = 17 if at % 2 else 1
            case = nodes(sizes, d, dtype, device, weighted=at % 3 == 1)
            yield from _on(f"multicut {dtype} {sizes} d={d}", case, sizes)


def _on(
    name: str, case: tuple[Tensor, Tensor | None, Tensor, float, int], sizes: tuple[int, ...]
) -> Iterator[tuple[str, Call]]:
    x, w, offsets, _, _ = case
    for k in (1, 3):
        yield (
            f"{name} topk {k}",
            lambda backend, k=k: run.multicut_topk(*case, None, None, None, k, 0, backend),
        )
    yield f"{name} negative_sum", lambda backend: (run.multicut_negative_sum(*case, backend),)
    yield f"{name} gaec", lambda backend: run.multicut_gaec(*case, backend)
    # Node i is in slot i % 3 of its instance's four, so that the last is empty.
    row = torch.arange(len(x), device=x.device)
    instance = torch.searchsorted(offsets, row, right=True) - 1
    labels = instance * 4 + (row - offsets[instance]) % 3
    slots = 4 * len(sizes)
    yield (
        f"{name} contract",
        lambda backend: run.multicut_contract(x, w, labels, slots, backend),
    )
    state = (labels, *run.multicut_contract(x, w, labels, slots, "reference"))
    borders = torch.arange(len(sizes) + 1, device=x.device) * 4
    target = run.multicut_best_cluster(*case, *state, borders, "reference")[0]
    yield (
        f"{name} best_cluster",
        lambda backend: run.multicut_best_cluster(*case, *state, borders, backend),
    )
    yield (
        f"{name} move",
        lambda backend: run.multicut_move(*case, *state, borders, row, offsets, target, backend),
    )


def compare(call: Call, what: str) -> None:
    for mine, truth in zip(call("cuda"), call("reference"), strict=True):
        torch.testing.assert_close(mine, truth, rtol=0, atol=0, msg=lambda m: f"{what}: {m}")
