"""Every launch that ``launch.py`` can select, as cases to compile ahead of time.

A launch is a kernel, its tile (configs.py: by target, operand and padded head dimension) and a mode
of each kind that changes the code: see ``MODES``. Left out are parts of what is compiled: one set
limited or masked where both are here, Dv other than D (the tile is that of the larger), lower
degrees. A tile takes both key dimensions from D, which may be any number up to the padded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from ..common.aot import DTYPES, Case
from . import columns, configs, features, rows
from .configs import Config, padded

_SIZES = {"n": "i32", "m1": "i32", "m2": "i32", "heads": "i32", "group": "i32", "window1": "i32",
          "window2": "i32", "near": "i32", "shares1": "i32", "shares2": "i32", "length": "i32",
          "rank": "i32", "segments": "i32", "scale_high": "fp32", "scale_low": "fp32"}  # fmt: skip

_TORCH = {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16,
          "bf16": torch.bfloat16}  # fmt: skip

DIMS = (16, 32, 64, 128)
#: Head dimensions that are padded to those, all their loads masked.
ODD = {16: 12, 32: 24, 64: 48, 128: 80}
#: Highest degree of the polynomial.
DEGREE = 6


@dataclass(frozen=True)
class Mode:
    """What of a launch of the kernels of attention changes their code.

    Attributes:
        limited: causal, or both windows. masked: both masks. narrow: a window of few keys. odd: D
            is not a power of two. near: pairs with a member in the row's segment. common: compiled
            by every run of the tests at D = 64, not only for the budget.
    """

    kind: str = "trilinear"
    function: str = "softmax"
    limited: bool = True
    masked: bool = False
    narrow: bool = False
    odd: bool = False
    near: bool = False
    common: bool = False


MODES = {
    "full": Mode(limited=False),
    "causal": Mode(common=True),
    "odd": Mode(odd=True),
    "masked": Mode(masked=True),
    "narrow": Mode(narrow=True),
    "strassen": Mode(kind="strassen"),
    "near": Mode(function="polynomial", near=True),
    "polynomial": Mode(function="polynomial", masked=True, narrow=True),
}
#: Modes by dtype, for D = 64 and 128 and for the smaller ones, whose tiles leave more room.
_PLAIN = ("full", "masked", "near")
_SMALLER = ("full", "masked", "narrow", "strassen", "near")
COMPILED = {
    "fp32": (tuple(MODES), _SMALLER),
    "bf16": (tuple(MODES), (*_SMALLER, "odd", "polynomial")),
    "fp64": (("full", "causal", "odd", "masked", "strassen", "near"), (*_PLAIN, "strassen")),
    # As bf16 but for the instruction that rounds.
    "fp16": (("causal", *_PLAIN), _PLAIN),
}
_KERNELS = {"forward": rows.forward_kernel, "query": rows.query_kernel, "key": columns.key_kernel}
_OWN = {
    "forward": {"out_ptr": "T", "lse_ptr": "A"},
    "query": {"dout_ptr": "T", "delta_ptr": "A", "dq_ptr": "T"},
    "key": {"dout_ptr": "T", "delta_ptr": "A", "dk1_ptr": "A", "dk2_ptr": "A", "dv1_ptr": "A",
            "dv2_ptr": "A"},
}  # fmt: skip


def _case(kernel: Any, name: str, dtype: str, target: str, pointers: Mapping[str, str],
          constants: Mapping[str, Any], launch: Config, common: bool) -> Case:  # fmt: skip
    """Of a kernel whose strides are those of usual shapes: multiples of 16."""
    acc = "*fp64" if dtype == "fp64" else "*fp32"
    types = {"T": "*" + dtype, "A": acc}
    found = {key: types.get(kind, kind) for key, kind in pointers.items()}
    strides = tuple(x for x in kernel.arg_names if x[-2:] in ("_b", "_h", "_n"))
    found |= {x: "i64" if x[-2:] == "_b" else "i32" for x in strides}
    found |= {key: kind for key, kind in _SIZES.items() if key in kernel.arg_names}
    return Case(
        name=f"{name}-{dtype}-{target}",
        kernel=kernel,
        signature=found,
        constexprs={**constants, "ACC": tl.float64 if dtype == "fp64" else tl.float32},
        options=launch.options(),
        dtype=dtype,
        common=common,
        divisible=strides,
    )


def _attention(name: str, d: int, label: str, dtype: str, target: str) -> Case:
    mode = MODES[label]
    polynomial = mode.function == "polynomial"
    kind, size, precision = configs.operand(_TORCH[dtype], polynomial)
    if mode.odd:
        d = ODD[d]
    tile = configs.config(name, size, d, d, target)
    if name != "key":
        tile = configs.row_tile(tile, size, mode.masked, mode.narrow)
    pointers = {f"{x}_ptr": "T" for x in ("q", "k1", "k2", "v1", "v2")} | _OWN[name]
    if polynomial:
        pointers["coefficients_ptr"] = "A"
        pointers["out_ptr" if name == "forward" else "dout_ptr"] = "A"
    elif name != "forward":
        pointers["lse_ptr"] = "A"
    elif mode.kind == "trilinear":
        pointers["bound_ptr"] = "A"
    if mode.masked:
        pointers |= {"mask1_ptr": "*i32", "mask2_ptr": "*i32"}
    constants = {
        "KIND": mode.kind, "FUNCTION": mode.function, "DEGREE": DEGREE if polynomial else 0,
        "LIMIT1": mode.limited, "LIMIT2": mode.limited, "NEAR": mode.near, "D": d, "DV": d,
        "BD": padded(d), "BDV": padded(d), "BM": tile.bm, "BN": tile.bn, "OPERAND": kind,
        "PRECISION": precision,
    }  # fmt: skip
    if name == "forward":
        constants["LIMIT_BOUND"] = configs.BOUND_FP16 if dtype == "fp16" else configs.BOUND
    common = d == 64 and (mode.common or (label == "near" and dtype == "fp16"))
    full = f"{name}-d{padded(d)}-{label}"
    return _case(_KERNELS[name], full, dtype, target, pointers, constants, tile, common)


def _features(dtype: str, target: str) -> Iterator[Case]:
    inputs = {"x_ptr": "T", "index_ptr": "*i32", "sums_ptr": "A", "ones_ptr": "A"}
    query = {"weight_ptr": "A", "one_ptr": "A"}
    _, size, precision = configs.operand(_TORCH[dtype], True)
    for d in DIMS:
        tile = configs.config("features", size, d, d, target)
        constants = {"DEGREE": DEGREE, "D": d, "DV": d, "BDV": d, "BM": tile.bm, "BA": tile.bn,
                     "PRECISION": precision}  # fmt: skip
        for kernel, name, pointers in (
            (features.moment_kernel, "moment", {"v_ptr": "A", **query}),
            (features.moment_kernel, "moment-keys", {"v_ptr": "T", "keep_ptr": "*i32"}),
            (features.evaluate_kernel, "evaluate",
             {"weight_ptr": "A", "out_ptr": "A", "total_ptr": "A"}),
            (features.gradient_kernel, "gradient", {"v_ptr": "A", "dx_ptr": "T", **query}),
            (features.gradient_kernel, "gradient-keys",
             {"v_ptr": "T", "dx_ptr": "T", "keep_ptr": "*i32"}),
        ):  # fmt: skip
            more = {"BD": d} if kernel is features.gradient_kernel else {}
            yield _case(kernel, f"{name}-d{d}", dtype, target, {**inputs, **pointers},
                        {**constants, **more}, tile, d == 64 and "keys" not in name)  # fmt: skip


def cases() -> Iterator[Case]:
    """Every kernel x tile x mode x dtype x target; a name ends in its target."""
    for target in configs.TARGETS:
        for dtype in DTYPES:
            for name in _KERNELS:
                for d in DIMS:
                    for label in COMPILED[dtype][d < 64]:
                        if name != "key" or label != "narrow":
                            yield _attention(name, d, label, dtype, target)
            yield from _features(dtype, target)
            for d in DIMS:
                yield _case(rows.norm_kernel, f"norm-d{d}", dtype, target,
                            {"x_ptr": "T", "norm_ptr": "A"},
                            {"D": d, "BD": d, "ROWS": configs.NORM_ROWS},
                            configs.norm_launch(target), d == 128)  # fmt: skip
