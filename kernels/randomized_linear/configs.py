"""Launch shapes of the randomized linear kernels, and what of them is compiled ahead of time.

Fixed rules instead of autotuning: a first call must not time anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton.language as tl

from ..common.aot import DTYPES, Case

#: Multiply-adds may contract; no random number depends on it. Stated at every launch: the default
#: differs between Triton versions.
FP_FUSION = True

# Programs below which a launch leaves multiprocessors idle (some 132, two programs each).
_ENOUGH = 264


@dataclass(frozen=True)
class Dense:
    """Tile of a dense projection: sketch x columns of the result, rows of x at a time."""

    sketch: int  # a power of two in 16 .. 128
    columns: int
    rows: int
    warps: int


@dataclass(frozen=True)
class Tile:
    """Columns of a tile of 1024 rows (srht), elements of a tile (hadamard: ``block``)."""

    columns: int
    warps: int

    @property
    def block(self) -> int:
        return 1024 * self.columns


@dataclass(frozen=True)
class Select:
    """Tile of a selection: rows of the result x columns."""

    outputs: int
    columns: int
    warps: int


#: 16-bit elements, (small, large). Drawing a tile of S costs more than multiplying it by as few
#: columns, so tiles are wide. fp32 and fp64 are multiplied without tensor cores.
DENSE_16 = (Dense(32, 128, 32, 4), Dense(64, 256, 32, 8))
DENSE_32 = Dense(32, 64, 16, 4)
DENSE_64 = Dense(16, 64, 4, 4)

#: The tile lies in 32 registers of each thread (hadamard: 64), an fp64 tile in as many.
SRHT, SRHT_64 = Tile(16, 16), Tile(8, 16)
HADAMARD, HADAMARD_64 = Tile(16, 8), Tile(8, 8)

#: 512 bytes of a row, by the size of an element.
SELECT = {2: Select(32, 256, 4), 4: Select(32, 128, 4), 8: Select(32, 64, 4)}


def index(span: int) -> Any:
    """Type of the offsets within a tile whose rows span that many elements."""
    return tl.int32 if span < 2**31 - 2**16 else tl.int64


def precision(itemsize: int) -> str:
    """How tl.dot multiplies: 16-bit elements and signs are exact in tf32, normal numbers keep 11
    bits there, as they would as fp16 (bf16: 8). fp32 must not be rounded."""
    return "tf32" if itemsize == 2 else "ieee"


def dense(columns: int, k: int, itemsize: int) -> Dense:
    if itemsize != 2:
        return DENSE_32 if itemsize == 4 else DENSE_64
    small, large = DENSE_16
    programs = -(-k // large.sketch) * -(-columns // large.columns)
    return large if programs >= _ENOUGH else small


def srht(itemsize: int) -> Tile:
    return SRHT_64 if itemsize == 8 else SRHT


def srht_tiles(blocks: int, across: int) -> int:
    """Tiles of columns for one program, of ``across`` in all: signs and chosen rows are found once
    a program, as long as there are programs enough."""
    groups = min(across, max(1, -(-_ENOUGH // blocks)))
    return -(-across // groups)


def hadamard(itemsize: int) -> Tile:
    return HADAMARD_64 if itemsize == 8 else HADAMARD


def select(itemsize: int) -> Select:
    return SELECT[itemsize]


# ---------------------------------------------------------------------------------------------
# Ahead-of-time compilation (kernels/common/aot.py).


def _case(
    name: str,
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    dtype: str,
    warps: int,
    divisible: tuple[str, ...] = ("columns", "row_stride"),
    common: bool = True,
) -> Case:
    acc = "fp64" if dtype == "fp64" else "fp32"
    types = {"x": "*" + dtype, "acc": "*" + acc}
    return Case(
        name=f"{name}-{dtype}",
        kernel=kernel,
        signature={arg: types.get(kind, kind) for arg, kind in signature.items()},
        constexprs={**constexprs, "ACC": tl.float64 if dtype == "fp64" else tl.float32},
        options={"num_warps": warps, "enable_fp_fusion": FP_FUSION},
        dtype=dtype,
        common=common,
        divisible=divisible,
    )


_SHAPE = {"rows": "i32", "columns": "i32", "row_stride": "i32", "k": "i32"}


def _dense_cases(dtype: str, itemsize: int) -> Iterator[Case]:
    from .dense import project_dense_kernel

    configs = DENSE_16 if itemsize == 2 else (dense(1, 1, itemsize),)
    for kind in ("gaussian", "rademacher"):
        for config in configs:
            signature = {"x_ptr": "x", "out_ptr": "x", "seed_ptr": "*i64", **_SHAPE}
            if kind == "gaussian":
                signature["table_ptr"] = "*fp32"
            constexprs = {
                "KIND": kind,
                "PRECISION": precision(itemsize),
                "SKETCH": config.sketch,
                "COLUMNS": config.columns,
                "ROWS": config.rows,
            }
            name = f"{kind}-{config.sketch}"
            yield _case(name, project_dense_kernel, signature, constexprs, dtype, config.warps)


def _srht_cases(dtype: str, itemsize: int) -> Iterator[Case]:
    from .srht import project_srht_kernel

    config = srht(itemsize)
    counts = ("blocks", "chunk", "size", "half", "tiles", "groups")
    signature = {"x_ptr": "x", "out_ptr": "x", "seed_ptr": "*i64", **_SHAPE}
    signature.update(dict.fromkeys(counts, "i32"))
    for index in (tl.int32, tl.int64) if dtype == "bf16" else (tl.int32,):
        constexprs = {"INDEX": index, "COLUMNS": config.columns}
        yield _case(
            f"srht-{index}",
            project_srht_kernel,
            signature,
            constexprs,
            dtype,
            config.warps,
            common=index == tl.int32,
        )


def _select_cases(dtype: str, itemsize: int) -> Iterator[Case]:
    from .select import select_kernel

    config = select(itemsize)
    signature = {"x_ptr": "x", "out_ptr": "x", **_SHAPE, "members": "i32", "half": "i32"}
    for kind in ("index", "rows", "countsketch"):
        more = (
            {"index_ptr": "*i32", "scale_ptr": "acc"} if kind == "index" else {"seed_ptr": "*i64"}
        )
        constexprs = {"KIND": kind, "OUTPUTS": config.outputs, "COLUMNS": config.columns}
        full = {**signature, **more}
        yield _case(kind, select_kernel, full, constexprs, dtype, config.warps)


def _hadamard_cases(dtype: str, itemsize: int) -> Iterator[Case]:
    from .hadamard import hadamard_columns_kernel, hadamard_kernel

    config = hadamard(itemsize)
    scale = {"scale_high": "fp32", "scale_low": "fp32"}
    signature = {"x_ptr": "x", "out_ptr": "x", "rows": "i32", "length": "i32", "row_stride": "i32"}
    signature |= {"log_tiles": "i32", **scale}
    for points in (64, config.block):
        constexprs = {"POINTS": points, "BLOCK": config.block, "INDEX": tl.int32}
        yield _case(
            f"hadamard-{points}",
            hadamard_kernel,
            signature,
            constexprs,
            dtype,
            config.warps,
            ("row_stride",),
            common=points == config.block,
        )
    middle = "*fp32" if itemsize == 2 else "x"
    signature = {"x_ptr": middle, "out_ptr": "x", "stride": "i32", **scale}
    constexprs = {"POINTS": 64, "BLOCK": config.block}
    yield _case(
        "hadamard-columns",
        hadamard_columns_kernel,
        signature,
        constexprs,
        dtype,
        config.warps,
        ("stride",),
    )


def aot_cases() -> list[Case]:
    """Every kernel x kind x dtype x config."""
    return [
        case
        for dtype in DTYPES
        for cases in (_dense_cases, _srht_cases, _select_cases, _hadamard_cases)
        for case in cases(dtype, {"fp32": 4, "fp64": 8}.get(dtype, 2))
    ]
