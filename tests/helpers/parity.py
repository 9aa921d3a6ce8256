"""The acceptance rule for a kernel's results: held to float64, same-dtype eager the measure.

A result passes if

- it has eager's shape and dtype, and is NaN and infinite exactly where the truth is;
- its largest error is at most 2 (forward) or 3 (gradient) times eager's largest error, plus a floor
  of a few units in the last place of the element;
- its relative RMS error is under the table;
- a gradient has, row by row, the magnitude of the true one: a zeroed row or an unwritten tail is a
  small part of a tensor's RMS, and is caught here.

Exact results (packed codes, labels, products rounded once) go through ``assert_same_bits``.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Relative RMS error allowed, (forward, gradient).
RMS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-6, 3e-6),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (8e-3, 1.6e-2),
}
#: Floor of the largest error in units in the last place. 16-bit results are computed in fp32 and
#: rounded once, so one unit is twice what they may lose; fp32 and fp64 evaluate a formula.
ULPS = {torch.float64: 4, torch.float32: 4, torch.float16: 1, torch.bfloat16: 1}
ROW = 64  # elements of a row in the comparison of magnitudes
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def floor(size: Tensor, dtype: torch.dtype) -> Tensor:
    """``ULPS`` units in the last place of numbers of this size, down to the subnormals."""
    info = torch.finfo(dtype)
    return ULPS[dtype] * info.eps * size.abs().clamp_min(info.smallest_normal)


def assert_parity(
    result: Tensor,
    truth: Tensor,
    eager: Tensor,
    *,
    gradient: bool = False,
    scale: Tensor | None = None,
    what: str = "result",
) -> None:
    """Checks ``result`` against the float64 ``truth`` by the rule above.

    Args:
        truth: float64, computed from the already rounded inputs.
        eager: what torch computes in the dtype of the result; sets the allowance.
        gradient: the wider allowances of gradients, and the magnitudes of rows.
        scale: size of the terms whose difference an element is, where its formula cancels (x in
            x - tanh(x)): the floor is then in their last place. None: size of the truth.
    """
    assert truth.dtype == torch.float64, f"{what}: the truth must be float64, got {truth.dtype}"
    assert result.shape == truth.shape == eager.shape, f"{what}: shape {tuple(result.shape)}"
    assert result.dtype == eager.dtype, f"{what}: {result.dtype}, eager gives {eager.dtype}"
    dtype = result.dtype
    r, t, e = (v.detach().cpu().double().reshape(-1) for v in (result, truth, eager))
    size = (
        t.abs()
        if scale is None
        else t.abs().maximum(scale.detach().cpu().double().abs().reshape(-1))
    )
    if t.numel() == 0:
        return
    rounded = t.to(dtype).double()
    finite = rounded.isfinite()
    odd = (r[~finite] == rounded[~finite]) | (r[~finite].isnan() & rounded[~finite].isnan())
    assert odd.all(), f"{what}: {r[~finite][~odd][:4]} where {rounded[~finite][~odd][:4]} is due"
    broken = finite & ~r.isfinite()
    assert not broken.any(), (
        f"{what}: {int(broken.sum())} elements not finite, the first at {int(broken.nonzero()[0])}"
    )
    r, t, e, size = r[finite], t[finite], e[finite], size[finite]
    if t.numel() == 0:
        return
    error = (r - t).abs()
    # Where eager itself is not finite though the truth is, that is no allowance for us.
    allowance = (e - t).abs().nan_to_num(0.0, 0.0, 0.0).max() * (3 if gradient else 2)
    lowest = floor(size, dtype)
    excess = error - allowance - lowest
    at = int(excess.argmax())
    assert excess[at] <= 0, (
        f"{what}: error {error[at]:.3g} at finite element {at} ({r[at]:.9g} for {t[at]:.9g}), "
        f"allowed {allowance:.3g} + {lowest[at]:.3g}"
    )
    limit = RMS[dtype][int(gradient)]
    whole = t.square().mean().sqrt()
    rms = error.square().mean().sqrt()
    assert rms <= limit * whole + torch.finfo(dtype).tiny, (
        f"{what}: relative RMS {rms / whole:.3g} > {limit}"
    )
    if gradient:
        _assert_row_magnitudes(r, t, limit, torch.finfo(dtype).smallest_normal, what)


def _assert_row_magnitudes(r: Tensor, t: Tensor, limit: float, tiny: float, what: str) -> None:
    pad = -t.numel() % ROW
    rows = [torch.nn.functional.pad(v, (0, pad)).reshape(-1, ROW) for v in (r, t)]
    ours, true = (row.norm(dim=1) for row in rows)
    # An element half a subnormal step off in every place is no error of the kernel.
    off = (ours - true).abs() > limit * true + tiny * ROW**0.5
    assert not off.any(), (
        f"{what}: magnitude of row {int(off.nonzero()[0])} is "
        f"{ours[off][0] / true[off][0]:.6g} of the true one"
    )


def bit_pattern(x: Tensor) -> Tensor:
    """The elements as integers, every NaN the same one."""
    x = x.detach().cpu().contiguous()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view(_INTEGER[x.element_size()])


def assert_same_bits(result: Tensor, expected: Tensor, what: str = "result") -> None:
    """Equal in shape, dtype and every bit; one NaN is as good as another."""
    assert result.shape == expected.shape, f"{what}: {result.shape}, expected {expected.shape}"
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, expected {expected.dtype}"
    different = bit_pattern(result) != bit_pattern(expected)
    if different.any():
        at = tuple(different.nonzero()[0].tolist())
        got, due = result.detach().cpu()[at].item(), expected.detach().cpu()[at].item()
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.numel()} elements differ, "
            f"the first at {at}: {got!r}, expected {due!r}"
        )
