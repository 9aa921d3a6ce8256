"""Cases of the few-bit kernels for cases.py, through the public functions and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from sublimate import fewbit
from sublimate.fewbit import reference
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Rounding of the element type, times a few for the functions' own error.
TOLERANCE = {
    torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12
}  # fmt: skip
SIZES = (0, 1, 31, 33, 127, 1025, 4099)
PARAMETERS: dict[str, tuple[float, ...]] = {"threshold": (0.3, -1.0)}
Call = Callable[..., Tensor]


def numbers(n: int, dtype: torch.dtype, device: str, seed: int, offset: int = 0) -> Tensor:
    """n normal numbers in a fresh allocation of their own, beginning ``offset`` elements in."""
    generator = torch.Generator().manual_seed(seed)
    room = torch.randn(n + offset, generator=generator, dtype=torch.float64).to(dtype).to(device)
    return room[offset:]


def compare(call: Call, leaves: list[Tensor], what: str) -> None:
    """Forward and every gradient, alone and together, of backend "cuda" against "reference"."""
    results = []
    for backend in ("cuda", "reference"):
        inputs = [t.detach().requires_grad_() for t in leaves]
        y = call(*inputs, backend=backend)
        dy = numbers(y.numel(), y.dtype, str(y.device), 99, offset=1).view(y.shape)
        grads = list(torch.autograd.grad(y, inputs, dy))
        if len(leaves) > 1:
            for i, t in enumerate(leaves):
                alone = [u.detach() for u in leaves]
                alone[i] = t.detach().requires_grad_()
                grads += torch.autograd.grad(call(*alone, backend=backend), alone[i], dy)
        results.append([y.detach(), *grads])
    for mine, truth in zip(*results, strict=True):
        tolerance = TOLERANCE[mine.dtype]
        torch.testing.assert_close(
            mine, truth, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
        )


def cases(device: str) -> Iterator[Callable[[], None]]:
    for what, call, leaves in _calls(device):
        yield lambda w=what, c=call, t=leaves: compare(c, t, w)


def _calls(device: str) -> Iterator[tuple[str, Call, list[Tensor]]]:
    plain = [n for n in reference.FUNCTIONS if n != "gelu_tanh"]
    for name in plain:
        function, parameters = getattr(fewbit, name), PARAMETERS.get(name, ())
        for dtype in (torch.float32, torch.bfloat16):
            yield (
                f"{name} {dtype}",
                lambda x, f=function, p=parameters, **k: f(x, *p, **k),
                [numbers(77, dtype, device, 1)],
            )
    for dtype in DTYPES:
        for n in SIZES:
            for bits in (1, 2, 3, 4):
                offset = (n + bits) % 4
                x = numbers(n, dtype, device, n, offset)
                yield (
                    f"gelu {dtype} {n} bits={bits} offset={offset}",
                    lambda x, b=bits, **k: fewbit.gelu(x, approximate="tanh", bits=b, **k),
                    [x],
                )
            yield f"relu {dtype} {n}", fewbit.relu, [numbers(n, dtype, device, 2, 3)]
            yield (
                f"stochastic silu {dtype} {n}",
                lambda x, **k: fewbit.silu(x, bits=2, stochastic=True, seed=2**40 + 1, **k),
                [numbers(n, dtype, device, 3, 1)],
            )
        for rows, inner in ((0, 5), (1, 1), (5, 33), (3, 1025), (130, 7)):
            for keep in ("up", "gate"):
                for function in (fewbit.swiglu, fewbit.geglu):
                    pair = [
                        numbers(rows * inner, dtype, device, s, s).view(rows, inner) for s in (1, 2)
                    ]
                    yield (
                        f"{function.__name__} {dtype} {rows} x {inner} keep={keep}",
                        lambda g, u, f=function, k=keep, **more: f(g, u, bits=3, keep=k, **more),
                        pair,
                    )
