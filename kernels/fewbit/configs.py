"""Launch shapes of the few-bit kernels, and the list of what is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton.language as tl

from ..common.aot import DTYPES, Case

#: Multiply-adds may contract. Stated at every launch: the default differs between Triton versions.
#: No code and no gradient depends on it, for they are compared and multiplied once.
FP_FUSION = True


@dataclass(frozen=True)
class Config:
    """BLOCK elements per program (a power of two, at least 32) on ``warps`` warps."""

    block: int
    warps: int


#: (small, large) launches. 8 elements to a thread: one 16-byte access of fp16, two of fp32. fp64
#: takes 4, since 8 of them and their codes would not stay in registers.
CONFIGS = (Config(block=256, warps=1), Config(block=1024, warps=4))
CONFIGS_FP64 = (Config(block=128, warps=1), Config(block=512, warps=4))

# Below this many elements large blocks would leave multiprocessors idle (some 132, 8 blocks each).
_LARGE_FROM = 1 << 20


def configs_of(itemsize: int) -> tuple[Config, Config]:
    """(small, large) launches for elements of ``itemsize`` bytes."""
    return CONFIGS_FP64 if itemsize == 8 else CONFIGS


def pick(n: int, itemsize: int) -> Config:
    """Launch for n elements.

    A fixed rule instead of autotuning: the kernels are bound by memory, and a first call must not
    time anything.
    """
    small, large = configs_of(itemsize)
    return large if n >= _LARGE_FROM else small


def rows(inner: int) -> dict[str, Any]:
    """Constants of ``codes.row_scale`` for rows of ``inner`` elements."""
    return {
        "BY_GROUP": inner % 32 == 0,
        "INDEX": tl.int32 if inner < 2**30 else tl.int64,
    }


# ---------------------------------------------------------------------------------------------
# Ahead-of-time compilation: the cases, family-agnostic in form (kernels/common/aot.py).


def _case(
    name: str,
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    dtype: str,
    config: Config,
    common: bool,
) -> Case:
    kind = "*" + dtype
    table = "*fp64" if dtype == "fp64" else "*fp32"
    types = {"x": kind, "table": table, "words": "*i32"}
    return Case(
        name=f"{name}-{dtype}-{config.block}",
        kernel=kernel,
        signature={arg: types.get(kind, kind) for arg, kind in signature.items()},
        constexprs={
            **constexprs,
            "ACC": tl.float64 if dtype == "fp64" else tl.float32,
            "BLOCK": config.block,
        },
        options={"num_warps": config.warps, "enable_fp_fusion": FP_FUSION},
        dtype=dtype,
        common=common,
    )


def _activation_cases(dtype: str, config: Config) -> Iterator[Case]:
    from . import bwd, fwd
    from .math import EXACT, SMOOTH

    coded = {"x_ptr": "x", "packed_ptr": "words", "n": "i32"}
    whole = {**coded, "y_ptr": "x"}
    tables = {"borders_ptr": "table", "codes_ptr": "*u8"}
    random = {"levels_ptr": "table", "seed_ptr": "*i64"}
    # softplus takes the parameters (beta, threshold); the others ignore what they do not have.
    fixed = {"A": 1.0, "B": 20.0}

    def forward(
        name: str, fn: str, mode: str, bits: int, m: int, signature: dict[str, str], common: bool
    ) -> Case:
        constants = {"FN": fn, **fixed, "BITS": bits, "M": m, "MODE": mode}
        return _case(name, fwd.activation_fwd_kernel, signature, constants, dtype, config, common)

    for fn in SMOOTH:
        shared = fn == "gelu"
        yield forward(f"fwd-{fn}", fn, "borders", 3, 7, {**whole, **tables}, shared)
        yield forward(f"fwd-{fn}-chance", fn, "chance", 3, 0, {**whole, **random}, shared)
    for fn in EXACT:
        yield forward(f"fwd-{fn}", fn, "predicate", 1, 0, whole, fn == "hardtanh")
    for bits, m in ((1, 1), (2, 3), (4, 15), (4, 30), (8, 255)):
        name = f"fwd-gelu-{bits}-bits-{m}"
        yield forward(name, "gelu", "borders", bits, m, {**whole, **tables}, False)
    yield forward("fwd-gelu-8-bits-chance", "gelu", "chance", 8, 0, {**whole, **random}, False)
    no_codes = {"x_ptr": "x", "y_ptr": "x", "n": "i32"}
    yield forward("fwd-silu-no-codes", "silu", "borders", 0, 0, no_codes, False)
    wide = {**whole, **tables, "n": "i64"}
    yield forward("fwd-silu-wide", "silu", "borders", 3, 7, wide, False)
    yield forward("encode", "given", "borders", 3, 7, {**coded, **tables}, True)
    yield forward("encode-chance", "given", "chance", 3, 0, {**coded, **random}, False)
    decoded = {"grad_ptr": "x", "packed_ptr": "words", "levels_ptr": "table", "dx_ptr": "x"}
    for bits in (1, 2, 3, 4, 8):
        yield _case(
            f"bwd-{bits}-bits",
            bwd.activation_bwd_kernel,
            {**decoded, "n": "i32"},
            {"BITS": bits},
            dtype,
            config,
            bits in (3, 4),
        )


def _gated_cases(dtype: str, config: Config) -> Iterator[Case]:
    from . import bwd, fwd
    from .math import GATES

    tail = {"n": "i32", "inner": "i32"}
    gated = {"gate_ptr": "x", "up_ptr": "x", "y_ptr": "x", "packed_ptr": "words", **tail}
    tables = {"borders_ptr": "table", "codes_ptr": "*u8"}
    back = {"dy_ptr": "x", "kept_ptr": "x", "packed_ptr": "words", "levels_ptr": "table", **tail}
    scale, both = {"scale_ptr": "*fp32"}, {"dgate_ptr": "x", "dup_ptr": "x"}
    for fn in GATES:
        for keep, inner, common in (
            ("up", 32, fn == "silu"),
            ("gate", 64, fn == "silu"),
            ("gate", 33, fn == "gelu"),
            ("gate", 2**31 - 32, False),
        ):
            constants = {"FN": fn, "BITS": 3, "KEEP": keep, **rows(inner)}
            name = f"{fn}-keep-{keep}-{inner}"
            extra = scale if keep == "gate" else {}
            yield _case(
                f"gated-fwd-{name}",
                fwd.gated_fwd_kernel,
                {**gated, **tables, **extra},
                {**constants, "M": 7},
                dtype,
                config,
                common,
            )
            values = {"values_ptr": "table"} if keep == "up" else {}
            yield _case(
                f"gated-bwd-{name}",
                bwd.gated_bwd_kernel,
                {**back, **both, **values, **extra},
                constants,
                dtype,
                config,
                common,
            )


def aot_cases() -> list[Case]:
    """Every kernel x function x dtype x config; ``common`` marks the subset for every target."""
    return [
        case
        for dtype in DTYPES
        for config in configs_of(8 if dtype == "fp64" else 4)
        for cases in (_activation_cases, _gated_cases)
        for case in cases(dtype, config)
    ]
