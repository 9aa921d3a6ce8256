"""Launch shapes of the Kronecker attention kernels, and what is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from ..common.aot import DTYPES, Case

#: Multiply-adds may contract. Stated at every launch: the default differs between Triton versions.
FP_FUSION = True
#: Largest head dimension.
MOST_D = 128
#: Without a running maximum where no logit can exceed this: exp(40) times any number of pairs is
#: far from fp32's largest number. fp16 rounds exp(X) itself: 2^-14 to 2^14 are its normal numbers.
BOUND, BOUND_FP16 = 40.0, 9.7
#: Programs that fill a large GPU (some 132 multiprocessors, two each). A constant, not a question
#: to the device: the order of the sums depends on it, and is to be the same anywhere.
FILL = 264


@dataclass(frozen=True)
class Config:
    """A tile of bm rows and of bn keys (attention) or bn monomials (polynomial)."""

    bm: int
    bn: int
    warps: int
    stages: int = 1

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
        }


# By the bytes of an operand and the padded head dimension (the larger of D's and Dv's).
# 2: tensor cores; what limits a tile is registers: two sums of a row tile (query, forward), four of
# a key tile (key). 4, 8: IEEE products from registers (or TF32, polynomial), small tiles.
_SMALL = {
    4: {16: Config(32, 32, 4), 32: Config(32, 32, 4), 64: Config(32, 32, 4),
        128: Config(32, 16, 8)},
    8: {16: Config(16, 16, 8), 32: Config(16, 16, 8), 64: Config(16, 16, 8),
        128: Config(16, 16, 8)},
}  # fmt: skip
_ROWS = {16: Config(64, 64, 4), 32: Config(64, 64, 4), 64: Config(128, 64, 8),
         128: Config(64, 64, 8)}  # fmt: skip
_KEY = {
    2: {16: Config(64, 64, 4, 2), 32: Config(64, 64, 8, 2), 64: Config(64, 32, 8, 2),
        128: Config(64, 32, 8, 2)},
    4: {16: Config(32, 16, 4), 32: Config(32, 32, 4), 64: Config(32, 16, 4),
        128: Config(16, 32, 8)},
    8: dict.fromkeys((16, 32, 64, 128), Config(16, 8, 8)),
}  # fmt: skip
_FEATURES = {4: {**_SMALL[4], 64: Config(32, 16, 4)}, 8: _SMALL[8]}
#: "forward" and "query" hold rows, "key" keys of the second set, "features" rows or monomials, in
#: tiles of what is computed (fp32, fp64).
TABLES = {
    "forward": {
        2: {**_ROWS, 64: Config(64, 64, 8)},
        4: {**_SMALL[4], 128: Config(16, 16, 8)},
        8: {**_SMALL[8], 64: Config(16, 16, 4)},
    },
    "query": {**_SMALL, 2: _ROWS, 4: {**_SMALL[4], 128: Config(16, 16, 4)}},
    "key": _KEY,
    "features": _FEATURES,
}
# AMD keeps a comparison of 64 lanes in two scalar registers: few pairs a lane, or they run out.
_HIP = {size: dict.fromkeys((16, 32, 64, 128), Config(16, 32 if size == 2 else 16, 4))
        for size in (2, 4, 8)}  # fmt: skip
_HIP_KEY = {**_HIP, 2: {**_HIP[2], 16: Config(16, 16, 4)},
            4: dict.fromkeys((16, 32, 64, 128), Config(16, 16, 2))}  # fmt: skip
_HIP_QUERY = {**_HIP, 2: {**_HIP[2], 128: Config(16, 32, 8)}}
TABLES_HIP = {"forward": _HIP, "query": _HIP_QUERY, "key": _HIP_KEY, "features": _HIP}
#: Rows at once in the kernel of norms.
NORM_ROWS = 32


def padded(size: int) -> int:
    """Head dimension that a kernel computes with: a power of two."""
    return max(16, int(triton.next_power_of_2(size)))


def config(kernel: str, itemsize: int, d: int, dv: int, hip: bool) -> Config:
    """Launch of a kernel ("forward", "query", "key" or "features") for operands of ``itemsize``."""
    found = (TABLES_HIP if hip else TABLES)[kernel][itemsize][max(padded(d), padded(dv))]
    if kernel == "key" and itemsize == 2 and (padded(d) != d or padded(dv) != dv):
        return replace(found, bm=min(found.bm, 32))  # masks of loads take registers too
    return found


def narrow(config: Config, itemsize: int) -> Config:
    """The same with few rows: for a window of few keys beside the positions of a tile."""
    return replace(config, bm=min(config.bm, 32 if itemsize == 2 else 16))


def operand(dtype: torch.dtype, polynomial: bool) -> tuple[Any, int, str]:
    """What is multiplied: its Triton type, its bytes, and how products of it are taken.

    16 bits stay (softmax), or become TF32 (polynomial: its gradients do not fit into fp16); fp32 is
    IEEE, no TF32.
    """
    if dtype == torch.float64:
        return tl.float64, 8, "ieee"
    if dtype == torch.float32 or polynomial:
        return tl.float32, 4, "ieee" if dtype == torch.float32 else "tf32"
    return (tl.float16 if dtype == torch.float16 else tl.bfloat16), 2, "ieee"


def shares(pairs: int, m1: int, m2: int, config: Config) -> tuple[int, int]:
    """Shares of the two key sets in the kernel of their gradients: (of j, of tiles of k).

    About FILL programs with few copies of the gradients: shares of k copy those of the first set,
    shares of j those of the second, so both are near the root.
    """
    wanted = triton.cdiv(FILL, max(1, pairs))
    tiles = triton.cdiv(m2, config.bn)
    of_k = min(tiles, round(wanted**0.5 + 0.5))
    return max(1, min(m1, 16, triton.cdiv(wanted, of_k))), of_k


def segment(dv: int) -> int:
    """Positions of a segment of the causal polynomial: its sums are a quarter of its features.

    A multiple of every tile of rows and of keys.
    """
    return max(128, 4 * padded(dv))


# ---------------------------------------------------------------------------------------------
# Ahead-of-time compilation: the cases (kernels/common/aot.py).

HIP = "-hip"
_SIZES = {"n": "i32", "m1": "i32", "m2": "i32", "heads": "i32", "group": "i32", "window1": "i32",
          "window2": "i32", "near": "i32", "shares1": "i32", "shares2": "i32", "length": "i32",
          "rank": "i32", "segments": "i32", "scale_high": "fp32", "scale_low": "fp32"}  # fmt: skip

_TORCH = {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16,
          "bf16": torch.bfloat16}  # fmt: skip


def _case(kernel: Any, name: str, dtype: str, pointers: dict[str, str], constants: dict[str, Any],
          launch: Config, common: bool, hip: bool) -> Case:  # fmt: skip
    """Of a kernel whose strides are those of usual shapes: multiples of 16."""
    acc = "*fp64" if dtype == "fp64" else "*fp32"
    types = {"T": "*" + dtype, "A": acc}
    found = {key: types.get(kind, kind) for key, kind in pointers.items()}
    strides = tuple(x for x in kernel.arg_names if x[-2:] in ("_b", "_h", "_n"))
    found |= {x: "i64" if x[-2:] == "_b" else "i32" for x in strides}
    found |= {key: kind for key, kind in _SIZES.items() if key in kernel.arg_names}
    return Case(
        name=f"{name}-{dtype}{HIP if hip else ''}",
        kernel=kernel,
        signature=found,
        constexprs={**constants, "ACC": tl.float64 if dtype == "fp64" else tl.float32},
        options=launch.options(),
        dtype=dtype,
        common=common,
        divisible=strides,
    )


def _attention_cases(dtype: str, hip: bool) -> Iterator[Case]:
    from . import columns, rows

    kernels = {"forward": rows.forward_kernel, "query": rows.query_kernel,
               "key": columns.key_kernel}  # fmt: skip
    inputs = {f"{x}_ptr": "T" for x in ("q", "k1", "k2", "v1", "v2")}
    own = {
        "forward": {"out_ptr": "T", "lse_ptr": "A"},
        "query": {"dout_ptr": "T", "delta_ptr": "A", "dq_ptr": "T"},
        "key": {"dout_ptr": "T", "delta_ptr": "A", "dk1_ptr": "A", "dk2_ptr": "A", "dv1_ptr": "A",
                "dv2_ptr": "A"},
    }  # fmt: skip
    masks = {"mask1_ptr": "*i32", "mask2_ptr": "*i32"}

    def case(name: str, d: int, mode: str, common: bool) -> Case:
        polynomial = mode.startswith("polynomial")
        kind, size, precision = operand(_TORCH[dtype], polynomial)
        tile = config(name, size, d, d, hip)
        if mode == "narrow" or (mode == "masked" and name != "key" and tile.warps == 8):
            tile = narrow(tile, size)
        limit = mode in ("causal", "narrow", "polynomial-near")
        pointers = {**inputs, **own[name]}
        if polynomial:
            pointers["coefficients_ptr"] = "A"
            if name == "forward":
                pointers["out_ptr"] = "A"
            else:
                pointers["dout_ptr"] = "A"
        elif name == "forward" and mode != "strassen":
            pointers["bound_ptr"] = "A"
        elif name != "forward":
            pointers["lse_ptr"] = "A"
        if mode == "masked":
            pointers |= masks
        constants = {
            "KIND": "strassen" if mode == "strassen" else "trilinear",
            "FUNCTION": "polynomial" if polynomial else "softmax",
            "DEGREE": 3 if polynomial else 0, "LIMIT1": limit, "LIMIT2": limit,
            "NEAR": mode == "polynomial-near", "D": d, "DV": d, "BD": padded(d), "BDV": padded(d),
            "BM": tile.bm, "BN": tile.bn, "OPERAND": kind, "PRECISION": precision,
        }  # fmt: skip
        if name == "forward":
            constants["LIMIT_BOUND"] = BOUND
        full = f"{name}-d{d}-{mode}"
        return _case(kernels[name], full, dtype, pointers, constants, tile, common, hip)

    for name in kernels:
        for d in (16, 32, 64, 128):
            yield case(name, d, "causal", d == 64)
        yield case(name, 80, "full", False)
        yield case(name, 128, "masked", False)
        yield case(name, 128, "strassen", False)
        for d in (64, 128):
            yield case(name, d, "polynomial-near", d == 64 and dtype == "fp16")
        if name != "key":
            yield case(name, 128, "narrow", False)


def _feature_cases(dtype: str, hip: bool) -> Iterator[Case]:
    from . import features, rows

    inputs = {"x_ptr": "T", "index_ptr": "*i32", "sums_ptr": "A", "ones_ptr": "A"}
    query = {"weight_ptr": "A", "one_ptr": "A"}
    _, size, precision = operand(_TORCH[dtype], True)
    for d, degree in ((16, 3), (64, 2), (128, 2)):
        tile = config("features", size, d, d, hip)
        constants = {"DEGREE": degree, "D": d, "DV": d, "BDV": padded(d), "BM": tile.bm,
                     "BA": tile.bn, "PRECISION": precision}  # fmt: skip
        for kernel, name, pointers, more in (
            (features.moment_kernel, "moment", {"v_ptr": "A", **query}, {}),
            (features.moment_kernel, "moment-keys", {"v_ptr": "T", "keep_ptr": "*i32"}, {}),
            (features.evaluate_kernel, "evaluate",
             {"weight_ptr": "A", "out_ptr": "A", "total_ptr": "A"}, {}),
            (features.gradient_kernel, "gradient", {"v_ptr": "A", "dx_ptr": "T", **query},
             {"BD": padded(d)}),
            (features.gradient_kernel, "gradient-keys",
             {"v_ptr": "T", "dx_ptr": "T", "keep_ptr": "*i32"}, {"BD": padded(d)}),
        ):  # fmt: skip
            yield _case(kernel, f"{name}-d{d}-g{degree}", dtype, {**inputs, **pointers},
                        {**constants, **more}, tile, d == 64 and "keys" not in name,
                        hip)  # fmt: skip
    yield _case(rows.norm_kernel, "norm-d128", dtype, {"x_ptr": "T", "norm_ptr": "A"},
                {"D": 128, "BD": 128, "ROWS": NORM_ROWS}, Config(0, 0, 4), True, hip)  # fmt: skip


def aot_cases() -> list[Case]:
    """Every kernel x dtype x launch; ``common`` marks the subset for every target.

    Names that end in ``HIP`` are launches on AMD; none in fp64: the constants of its exponential
    run out of scalar registers (up to 62 are spilled).
    """
    return [
        case
        for dtype in DTYPES
        for hip in (False, True)
        if not (hip and dtype == "fp64")
        for part in (_attention_cases, _feature_cases)
        for case in part(dtype, hip)
    ]
