"""Launch shapes of the path-integral kernels, and what of them is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from ..common.aot import DTYPES, Case

#: Multiply-adds may contract; no random number depends on it. Stated at every launch: the default
#: differs between Triton versions.
FP_FUSION = True
#: Numbers of a sample to a program, warps. Fixed: a first call must not time anything.
BLOCK, WARPS = 512, 4
#: Cells of a mask to a program.
CELLS = 32


def options() -> dict[str, Any]:
    return {"num_warps": WARPS, "enable_fp_fusion": FP_FUSION}


def _case(name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any],
          dtype: str, common: bool = True) -> Case:  # fmt: skip
    wide = "*fp64" if dtype == "fp64" else "*fp32"
    types = {"T": f"*{dtype}", "A": wide}
    return Case(
        name=f"{name}-{dtype}",
        kernel=kernel,
        signature={key: types.get(kind, kind) for key, kind in signature.items()},
        constexprs={**constants, "ACC": tl.float64 if dtype == "fp64" else tl.float32},
        options=options(),
        dtype=dtype,
        common=common,
    )


def _cases(dtype: str) -> Iterator[Case]:
    from . import bwd, fwd

    sizes = {"points": "i32", "samples": "i32", "size": "i64"}
    starts = {"x_ptr": "A", "base_ptr": "A"}
    noise = {"stdev_ptr": "A", "seed_ptr": "*i64", "row_ptr": "*i64", "table_ptr": "*fp32",
             "step": "i64"}  # fmt: skip
    index = {"index_ptr": "*i64"}
    path = {**starts, "alpha_ptr": "A", "out_ptr": "T", **sizes}
    for name, more, each, gathered, noisy in (
        ("points", {}, False, False, False),
        ("points-gathered", index, True, True, False),
        ("points-noisy", noise, False, False, True),
    ):
        constants = {"EACH": each, "GATHER": gathered, "NOISY": noisy, "SHARED": False,
                     "BLOCK": BLOCK}  # fmt: skip
        yield _case(name, fwd.points_kernel, {**path, **more}, constants, dtype)
    sums = {"grads_ptr": "T", "weight_ptr": "A", "first_ptr": "A", **sizes}
    both = {"acc_ptr": "A", "square_ptr": "A", "second_ptr": "A"}
    for name, more, gathered, differs, second in (
        ("sum", {"acc_ptr": "A"}, False, False, False),
        ("moments", both, False, False, True),
        ("sum-difference", {**starts, **index}, True, True, False),
        ("moments-difference", {**starts, **both}, False, True, True),
    ):
        constants = {"EACH": gathered, "GATHER": gathered, "DIFFERS": differs, "SECOND": second,
                     "SHARED": False, "BLOCK": BLOCK}  # fmt: skip
        yield _case(name, fwd.accumulate_kernel, {**sums, **more}, constants, dtype)
    yield _case(
        "difference", bwd.difference_kernel,
        {"up_ptr": "A", "weight_ptr": "A", **starts, **index, "out_ptr": "T", **sizes},
        {"EACH": True, "GATHER": True, "SHARED": False, "BLOCK": BLOCK}, dtype,
    )  # fmt: skip
    images = {"points": "i32", "images": "i32", "channels": "i32", "height": "i32",
              "width": "i32", "mask_height": "i32", "mask_width": "i32"}  # fmt: skip
    picture = {"image_ptr": "A", "base_ptr": "A", "alpha_ptr": "A", **images}
    for name, more, noisy in (("mask-points", {}, False), ("mask-points-noisy", noise, True)):
        yield _case(
            name, fwd.mask_points_kernel, {**picture, "mask_ptr": "A", "out_ptr": "T", **more},
            {"NOISY": noisy, "SHARED": True, "BLOCK": BLOCK}, dtype,
        )  # fmt: skip
    yield _case(
        "mask-pixels", bwd.mask_pixels_kernel,
        {"grads_ptr": "T", "image_ptr": "A", "base_ptr": "A", "alpha_ptr": "A", "pixels_ptr": "A",
         "points": "i32", "images": "i32", "channels": "i32", "area": "i32"},
        {"SHARED": False, "BLOCK": BLOCK}, dtype,
    )  # fmt: skip
    if dtype in ("fp32", "fp64"):
        yield _case(
            "scale", fwd.scale_kernel,
            {"acc_ptr": "A", **starts, "out_ptr": "A", "sums_ptr": "A", "size": "i64"},
            {"SHARED": False, "BLOCK": BLOCK}, dtype,
        )  # fmt: skip
        small = {"height": "i32", "width": "i32", "mask_height": "i32", "mask_width": "i32"}
        yield _case(
            "mask-cells", bwd.mask_cells_kernel, {"pixels_ptr": "A", "out_ptr": "A", **small},
            {"BLOCK": BLOCK}, dtype,
        )  # fmt: skip
        penalty = {"mask_ptr": "A", "variation_ptr": "A", "area_ptr": "A", "height": "i32",
                   "width": "i32"}  # fmt: skip
        yield _case("mask-penalty", fwd.mask_penalty_kernel, penalty, {"BLOCK": BLOCK}, dtype)
        yield _case(
            "mask-penalty-grad", bwd.mask_penalty_kernel, {**penalty, "grad_ptr": "A"},
            {"BLOCK": BLOCK}, dtype,
        )  # fmt: skip


def aot_cases() -> list[Case]:
    """Every kernel and mode x dtype; there is one launch shape."""
    return [case for dtype in DTYPES for case in _cases(dtype)]
