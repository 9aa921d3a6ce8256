"""Every path-integral kernel against the reference, on every compiled backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import lanes, parity
from helpers import path_kernels as K
from sublimate import _normal

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
def test_paths(kernel: lanes.Lane, dtype):
    for call in K.path_calls(dtype, kernel.device):
        call.check(kernel.backend)


@pytest.mark.parametrize("dtype", K.DTYPES, ids=str)
def test_masks(kernel: lanes.Lane, dtype):
    for call in K.mask_calls(dtype, kernel.device):
        call.check(kernel.backend)


@pytest.mark.parametrize("step", [1501, 2**31 + 5])
def test_noise_is_the_streams(kernel: lanes.Lane, step):
    """Bit for bit, whatever the chunk and the place of the first number."""
    zero = torch.zeros(2, 1500, device=kernel.device)
    seed = torch.tensor(77, device=kernel.device)
    row = torch.tensor([5, 2**34 + 2], device=kernel.device)
    one = torch.ones(2, device=kernel.device)

    def points(first, count):
        alpha = torch.zeros(count, device=kernel.device)
        return torch.ops.sublimate.path_points(
            zero, zero, None, alpha, one, seed, row + first * step, step, torch.float32,
            kernel.backend,
        )  # fmt: skip

    whole = points(0, 5)
    k = torch.arange(5, device=kernel.device)[:, None, None] * step
    place = row[None, :, None] + k + torch.arange(1500, device=kernel.device)
    parity.assert_same_bits(whole, _normal.normal(seed, place))
    parity.assert_same_bits(torch.cat([points(0, 2), points(2, 1), points(3, 2)]), whole)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads):
    calls = [*K.path_calls(torch.float32, "cpu", ((7, 3, 5000),)),
             *K.mask_calls(torch.float32, "cpu", ((3, 2, 3, 90, 70, 28, 28),))]  # fmt: skip
    before = torch.get_num_threads()
    try:
        for call in calls:
            torch.set_num_threads(1)
            alone = call.op(*call.arguments, "cpu")
            torch.set_num_threads(threads)
            together = call.op(*call.arguments, "cpu")
            for a, b in zip(K._tuple(alone), K._tuple(together), strict=True):
                parity.assert_same_bits(b, a, call.name)
    finally:
        torch.set_num_threads(before)


def test_strides(kernel: lanes.Lane):
    """Transposed and expanded arguments give what dense ones give."""
    data = K.Numbers(torch.float32, kernel.device)
    x = data.normal(40, 3).t()
    base = data.normal(1, 1).expand(1, 40)
    grads = data.normal(1, 3, 1).expand(4, 3, 40)
    alpha = data.normal(8)[::2]
    ops = torch.ops.sublimate
    got = ops.path_points(x, base, None, alpha, None, None, None, 0, torch.float32, kernel.backend)
    dense = [t.contiguous() for t in (x, base, alpha)]
    due = ops.path_points(
        dense[0], dense[1], None, dense[2], None, None, None, 0, torch.float32, kernel.backend
    )
    parity.assert_same_bits(got, due)
    got = ops.path_accumulate(grads, alpha, None, None, True, kernel.backend)
    due = ops.path_accumulate(grads.contiguous(), dense[2], None, None, True, kernel.backend)
    for g, d in zip(got, due, strict=True):
        parity.assert_same_bits(g, d)


def test_nan_and_infinity_pass(kernel: lanes.Lane):
    x = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf, 2.0]], device=kernel.device)
    base, weight = torch.zeros_like(x), torch.tensor([0.5, 2.0], device=kernel.device)
    ops = torch.ops.sublimate
    z = ops.path_points(x, base, None, weight, None, None, None, 0, torch.float32, kernel.backend)
    first, second = ops.path_accumulate(z, weight, None, None, True, kernel.backend)
    for t in (z[0, 0], first[0]):
        assert (
            t[1].isnan() and t[2] == torch.inf and t[3] == -torch.inf and t[[0, 4]].isfinite().all()
        )
    assert second[0, 1].isnan() and second[0, 3] == torch.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_nan_stays_one(kernel: lanes.Lane, dtype):
    """Also those whose lower bits are set, which narrowing must not carry into the sign."""
    words = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32)
    x = words.repeat(20).view(torch.float32)[None].to(kernel.device)
    weight = torch.tensor([1.0, 0.5], device=kernel.device)
    ops = torch.ops.sublimate
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    z = ops.path_points(x, zero, None, weight, None, None, None, 0, dtype, kernel.backend)
    d = ops.path_difference(one, weight, x, zero, None, dtype, kernel.backend)
    picture = x.view(1, 1, 8, 10)
    m = ops.path_mask_points(
        picture, torch.zeros_like(picture), torch.ones(1, 1, 2, 2, device=kernel.device), weight,
        None, None, None, 0, dtype, kernel.backend,
    )  # fmt: skip
    assert z.isnan().all() and d.isnan().all() and m.isnan().all()


OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("kind", ["path", "mask"])
def test_opcheck(kind):
    if kind == "path":
        calls = list(K.path_calls(torch.float32, "cpu", ((2, 3, 5),)))[::5]
    else:
        calls = list(K.mask_calls(torch.float32, "cpu", ((2, 2, 1, 4, 5, 2, 3),)))
    for call in calls:
        torch.library.opcheck(call.op.default, (*call.arguments, "cpu"), test_utils=OPCHECKS)


def test_triton_grids_have_one_axis() -> None:
    """The others end at 65535 on CUDA, which batches of samples or images may pass."""
    pytest.importorskip("triton", reason="pip install triton")
    from sublimate.kernels.path_integral import bwd, fwd

    for module in (fwd, bwd):
        text = Path(module.__file__).read_text()
        assert "program_id(0)" in text and "program_id(1)" not in text
