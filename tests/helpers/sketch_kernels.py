"""The kernels of randomized_linear called directly, one form for every backend, and how they are
held to the reference. Shared by the Triton interpreter's cases and the tests of the CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from helpers.parity import assert_parity, assert_same_bits
from sublimate import _normal
from sublimate.randomized_linear import reference as R
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DENSE = ("gaussian", "rademacher")
SPARSE = ("srht", "countsketch", "rows")
SEED = 2**40 + 7


@dataclass(frozen=True)
class Kernels:
    """project(x, out, seed, sketch, table), gather(x, index, scale, out), hadamard(x, out, scale)
    write into ``out``."""

    project: Callable[..., None]
    gather: Callable[..., None]
    hadamard: Callable[..., None]
    device: str = "cpu"
    truncates: bool = False  # bf16 is cut, not rounded, as Triton's interpreter does


def triton(device: str = "cpu") -> Kernels:
    from sublimate.kernels.randomized_linear import fwd

    return Kernels(fwd.project, fwd.gather, fwd.hadamard, device, truncates=device == "cpu")


def native(backend: str, device: str = "cpu") -> Kernels:
    from sublimate._native import randomized_linear as N

    return Kernels(
        lambda *a: N.project(backend, *a),
        lambda *a: N.gather(backend, *a),
        lambda *a: N.hadamard(backend, *a),
        device,
    )


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers, the rows of different sizes."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= torch.rand(shape[0], 1, generator=generator, dtype=torch.float64) * 2 + 0.1
    return x.to(dtype)


def strided(x: Tensor, pad: int = 3, offset: int = 1) -> Tensor:
    """The same matrix with ``pad`` NaN between rows, ``offset`` elements into its allocation, which
    ends where the matrix does."""
    rows, columns = x.shape
    room = torch.full((offset + rows * (columns + pad) - pad * (rows > 0),), torch.nan).to(x.dtype)
    view = room.as_strided((rows, columns), (columns + pad, 1), offset)
    return view.copy_(x)


def put(x: Tensor, device: str) -> Tensor:
    """x on a device with its strides and its place in the allocation."""
    if device == "cpu":
        return x
    room = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return room.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def guarded(shape: tuple[int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Callable]:
    """A contiguous NaN-filled result between sentinels, off 16-byte alignment for 16-bit types, and
    a check that nothing around it was written."""
    n, edge = shape[0] * shape[1], 9
    room = torch.full((n + 2 * edge,), 77.0, dtype=dtype, device=device)
    out = room[edge : edge + n].view(shape).fill_(torch.nan)

    def check() -> None:
        assert (room[:edge] == 77).all() and (room[edge + n :] == 77).all(), "wrote outside"

    return out, check


def compare(
    kernels: Kernels, result: Tensor, truth: Tensor, eager: Tensor, size: Tensor, what: str
) -> None:
    """The house's rule, ``size`` that of the summed terms; bf16 that was cut: one bit more."""
    result = result.cpu()
    if result.dtype == torch.float64:
        # The truth rounds like the result: up to 20 levels or some hundred terms, each rounded to
        # 2**-53 of a partial sum, add to a few units of the terms' norm, 16 at most.
        size = 4 * size
    if not (kernels.truncates and result.dtype == torch.bfloat16):
        assert_parity(result, truth, eager, scale=size, what=what)
        return
    assert result.shape == truth.shape and result.dtype == torch.bfloat16, what
    finite = truth.isfinite()
    torch.testing.assert_close(
        result.double()[~finite], truth[~finite], rtol=0, atol=0, equal_nan=True
    )
    error = (result.double() - truth).abs()[finite]
    # A cut takes up to 2**-7 of the number; 2**-12 of the terms covers tf32's rounding of S.
    excess = error - (truth.abs() * 2.0**-7 + size * 2.0**-12)[finite]
    assert excess.numel() == 0 or excess.max() <= 0, f"{what}: error {error.max():.3g}"


def check_project(
    kernels: Kernels, x: Tensor, sketch: str, k: int, seed: int = SEED, what: str = ""
) -> Tensor:
    """Runs ``project`` on x (CPU) and compares; returns the result."""
    what = f"{sketch} {tuple(x.shape)} -> {k} {x.dtype} {what}"
    device = kernels.device
    out, unwritten = guarded((k, x.shape[1]), x.dtype, device)
    table = _normal.table(device) if sketch == "gaussian" else None
    kernels.project(put(x, device), out, torch.tensor(seed, device=device), sketch, table)
    unwritten()
    truth = R.project(x.double(), sketch, k, seed)
    # Sums of many rows: an element may be small by cancellation.
    terms = x.double().square().nan_to_num(0, 0, 0).sum(0).sqrt().expand(truth.shape)
    if x.dtype == torch.float64:
        # The truth rounds too: in sums of that size a random walk of as many steps as rows.
        terms = terms * max(1, x.shape[0]) ** 0.5
    compare(kernels, out, truth, R.project(x, sketch, k, seed), terms, what)
    return out.cpu()


def check_gather(
    kernels: Kernels, x: Tensor, index: Tensor, scale: Tensor | None, what: str = ""
) -> None:
    """Exact: one product, rounded once; without a scale, the rows themselves."""
    out, unwritten = guarded((index.numel(), x.shape[1]), x.dtype, kernels.device)
    there = [None if t is None else t.to(kernels.device) for t in (index, scale)]
    kernels.gather(put(x, kernels.device), *there, out)
    unwritten()
    expected = R.gather(x, index, scale)
    if kernels.truncates and x.dtype == torch.bfloat16 and scale is not None:
        wide = x[index.long()].float() * scale[:, None]
        expected = (wide.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
    assert_same_bits(out, expected, f"gather {tuple(x.shape)} {x.dtype} {what}")


def check_hadamard(kernels: Kernels, x: Tensor, scale: float, what: str = "") -> None:
    what = f"hadamard {tuple(x.shape)} {x.dtype} {what}"
    truth = R.hadamard_transform(x.double(), scale)
    out, unwritten = guarded(tuple(truth.shape), x.dtype, kernels.device)
    kernels.hadamard(put(x, kernels.device), out, scale)
    unwritten()
    terms = x.double().square().nan_to_num(0, 0, 0).sum(1, keepdim=True).sqrt() * abs(scale)
    eager = R.hadamard_transform(x, scale)
    compare(kernels, out, truth, eager, terms.expand(truth.shape), what)


def check_streams(kernels: Kernels) -> None:
    """S itself, bit for bit: S^T I is exact where 1 / sqrt(k) is a power of two."""
    n, k = 45, 16
    eye = torch.eye(n)
    for sketch in (*DENSE, "countsketch", "rows"):
        out, _ = guarded((k, n), torch.float32, kernels.device)
        table = _normal.table(kernels.device)
        for seed in (0, SEED, 2**63 - 1):
            there = torch.tensor(seed, device=kernels.device)
            kernels.project(eye.to(kernels.device), out, there, sketch, table)
            expected = R.project(eye, sketch, k, seed)
            if sketch == "rows":  # the scale is no power of two: its place and size
                assert torch.equal(out.cpu() != 0, expected != 0), seed
                torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=0)
            else:
                assert_same_bits(out, expected, f"{sketch} seed {seed}")
