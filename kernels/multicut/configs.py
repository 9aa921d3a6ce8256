"""Launch shapes of the multicut kernels, and the list of what is compiled ahead of time."""

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
#: Column indices are 32 bits while they are compared, and the highest stand for "none".
MOST_ROWS = 2**31 - 2**12
#: Longest list that a program keeps in registers.
MOST_K = 128

# Programs that fill a large GPU (some 132 multiprocessors, two each). A constant, not a question
# to the device: the sums of ``negative_sum`` depend on the shares, and are to be the same anywhere.
_FILL = 264
# Most shares of the columns: what the joining kernel reads per row grows with them.
_MOST_SHARES = 32
_MOST_CANDIDATES = 1024


@dataclass(frozen=True)
class Config:
    """A tile of bm rows and bn columns, bk of the inner size at a time."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
        }

    def constants(self, d: int) -> dict[str, Any]:
        """The tile for an inner size of d."""
        return {
            "RESIDENT": d <= self.bk,
            "EVEN": d % self.bk == 0,
            "BM": self.bm,
            "BN": self.bn,
            "BK": self.bk,
        }


# By bytes of an element: (longest list, launch). Two bytes: tensor cores, and the rows stay in
# shared memory up to d = 128; with a tile of 128 x 64 two blocks fit on a multiprocessor of sm_90,
# so that one compares while the other multiplies. Wider elements are multiplied one by one from
# registers: small tiles, a part of the coordinates at a time. Lists are in registers too: the
# longer, the fewer rows.
CONFIGS = {
    2: (
        (2, Config(128, 64, 128, 8, 3)),
        (16, Config(128, 64, 128, 8, 2)),
        (64, Config(64, 64, 64, 8, 2)),
        (MOST_K, Config(16, 64, 64, 4, 2)),
    ),
    4: (
        (2, Config(64, 64, 32, 8, 3)),
        (16, Config(64, 32, 32, 4, 2)),
        (64, Config(32, 64, 32, 8, 2)),
        (MOST_K, Config(16, 64, 32, 8, 2)),
    ),
    8: ((16, Config(32, 32, 16, 4, 2)), (MOST_K, Config(16, 32, 16, 8, 2))),
}
# AMD keeps a comparison of 64 lanes in two scalar registers: few pairs a lane, or they run out.
CONFIGS_HIP = {
    2: (
        (2, Config(64, 32, 64, 8, 2)),
        (64, Config(16, 32, 64, 4, 2)),
        (MOST_K, Config(16, 16, 32, 8, 2)),
    ),
    4: (
        (2, Config(32, 32, 16, 4, 2)),
        (64, Config(16, 16, 16, 8, 2)),
        (MOST_K, Config(4, 16, 16, 8, 2)),
    ),
    8: (
        (2, Config(32, 32, 16, 8, 2)),
        (64, Config(16, 16, 16, 8, 2)),
        (MOST_K, Config(4, 16, 16, 8, 2)),
    ),
}
# Where values may be NaN or infinite every comparison is several, and speed does not matter.
CONFIGS_WILD = (
    (2, Config(16, 16, 16, 2, 1)),
    (64, Config(16, 16, 16, 8, 1)),
    (MOST_K, Config(8, 16, 16, 4, 1)),
)


def _first(table: tuple[tuple[int, Config], ...], keep: int) -> Config:
    return next(config for most, config in table if keep <= most)


def wild(itemsize: int, keep: int) -> Config:
    """Launch of a pass over pairs whose values may be NaN or infinite."""
    config = _first(CONFIGS_WILD, keep)
    return replace(config, warps=8) if itemsize == 8 and keep > 2 else config


def sweep(itemsize: int, d: int, keep: int, hip: bool) -> Config:
    """Launch of a pass over pairs of elements of ``itemsize`` bytes; lists of ``keep`` a row."""
    config = _first((CONFIGS_HIP if hip else CONFIGS)[itemsize], keep)
    # Rows that do not stay: half the coordinates, for those of the rows are in flight as well.
    return config if d <= config.bk else replace(config, bk=min(config.bk, 64))


def upcast(dtype: torch.dtype) -> bool:
    """Whether tiles are widened before they are multiplied: the interpreter has no bf16 product."""
    return bool(triton.knobs.runtime.interpret) and dtype == torch.bfloat16


def shares(n: int, m: int, keep: int, config: Config) -> int:
    """Shares of m columns: enough programs for a large GPU, where the rows alone are too few."""
    wanted = triton.cdiv(_FILL, triton.cdiv(n, config.bm))
    most = max(1, min(_MOST_SHARES, _MOST_CANDIDATES // keep))
    return max(1, min(wanted, triton.cdiv(m, config.bn), most))


def candidates(k: int, narrow: bool) -> int:
    """Columns that a share keeps for each row: k, and some more where values are taken anew."""
    if k == 1:
        return 2 if narrow else 1
    return min(MOST_K, int(triton.next_power_of_2(k + 2 if narrow else k)))


def room(count: int) -> int:
    """Places for ``count`` candidates: a power of two."""
    return max(2, int(triton.next_power_of_2(count)))


def join(count: int) -> Config:
    """Launch of the kernels that compare ``count`` candidates a row."""
    return Config(max(1, min(32, 2048 // room(count))), 0, 32, 4, 1)


def coordinates(d: int) -> int:
    """Coordinates that a program has at once: all of them up to 1024."""
    return int(min(1024, max(32, triton.next_power_of_2(d))))


#: Rows at once in the sums over instances; slots at once in the search for an empty one.
SUM_BLOCK, SLOT_BLOCK = 1024, 256


# ---------------------------------------------------------------------------------------------
# Ahead-of-time compilation: the cases (kernels/common/aot.py).

HIP = "-hip"
_POINTERS = {"low_ptr": "*i64", "high_ptr": "*i64", "tame_ptr": "*i1", "index_ptr": "*i32"}
_SIZES = {"n": "i32", "m": "i32", "d": "i32", "self_at": "i32"}


def _types(dtype: str) -> tuple[str, str, Any]:
    """Pointer types of elements and of computed numbers, and the latter's type."""
    wide = dtype == "fp64"
    return "*" + dtype, "*fp64" if wide else "*fp32", tl.float64 if wide else tl.float32


def _sweep_cases(dtype: str, hip: bool) -> Iterator[Case]:
    from . import pairs

    x, acc, accumulate = _types(dtype)
    narrow = dtype in ("bf16", "fp16")
    arrays = {"x_ptr": x, "y_ptr": x, "u_ptr": acc, "v_ptr": acc, "values_ptr": acc}
    size = {"fp64": 8, "fp32": 4}.get(dtype, 2)
    suffix = HIP if hip else ""

    def case(kernel: Any, keep: int, d: int, skip: str, tame: bool, common: bool) -> Case:
        config = sweep(size, d, keep, hip) if tame else wild(size, keep)
        given = {"skip_ptr": "*i64"} if skip == "given" else {}
        kind = "tame" if tame else "wild"
        return Case(
            name=f"{kernel.__name__}-{keep}-d{d}-{skip}-{kind}-{dtype}{suffix}",
            kernel=kernel,
            signature={**arrays, **_POINTERS, **_SIZES, **given},
            constexprs={
                "KEEP": keep,
                "SKIP": skip,
                "TAME": tame,
                "UPCAST": not tame,
                "ACC": accumulate,
                **config.constants(d),
            },
            options=config.options(),
            dtype=dtype,
            common=common,
        )

    one = candidates(1, narrow)
    for tame in (True, False):
        yield case(pairs.best_kernel, one, 128, "self", tame, True)
        yield case(pairs.list_kernel, MOST_K, 128, "self", tame, True)
    for d in (100, 256):
        yield case(pairs.best_kernel, one, d, "self", True, False)
    yield case(pairs.best_kernel, one, 32, "none", True, False)
    if not narrow:
        yield case(pairs.best_kernel, one, 32, "given", True, True)
    for keep in (4, 16, 64):
        yield case(pairs.list_kernel, keep, 128, "self", True, keep == 16)
    if narrow:
        return
    for d in (32, 100):
        config = sweep(size, d, 1, hip)
        yield Case(
            name=f"negative-d{d}-{dtype}{suffix}",
            kernel=pairs.negative_kernel,
            signature={
                "x_ptr": x,
                "y_ptr": x,
                "u_ptr": acc,
                "v_ptr": acc,
                "high_ptr": "*i64",
                "sums_ptr": "*fp64",
                "n": "i32",
                "d": "i32",
            },
            constexprs={"ACC": accumulate, "UPCAST": False, **config.constants(d)},
            options=config.options(),
            dtype=dtype,
            common=d == 32,
        )


def _join_cases(dtype: str) -> Iterator[Case]:
    from . import pairs

    x, acc, accumulate = _types(dtype)
    narrow = dtype in ("bf16", "fp16")
    rows = {"x_ptr": x, "y_ptr": x, "u_ptr": acc, "v_ptr": acc} if narrow else {}
    for count in (1, 6, 64, _MOST_CANDIDATES):
        config = join(count)
        yield Case(
            name=f"join-{count}-{dtype}",
            kernel=pairs.join_kernel,
            signature={
                **rows,
                "partial_ptr": acc,
                "candidate_ptr": "*i32",
                "values_ptr": acc,
                "index_ptr": "*i64",
                "n": "i32",
                "m": "i32",
                "d": "i32",
                "k": "i32",
            },
            constexprs={
                "COUNT": count,
                "ROOM": room(count),
                "RESCORE": narrow,
                "ACC": accumulate,
                "BM": config.bm,
            },
            options=config.options(),
            dtype=dtype,
            common=count == _MOST_CANDIDATES,
        )


def _cluster_cases(dtype: str) -> Iterator[Case]:
    from . import clusters, pairs

    x, acc, accumulate = _types(dtype)
    state = {"sums_ptr": "*fp64", "masses_ptr": "*fp64", "counts_ptr": "*i64"}
    for weights in ({"w_ptr": x}, {}):
        name = f"{'weighted' if weights else 'plain'}-{dtype}"
        yield Case(
            name=f"contract-{name}",
            kernel=clusters.contract_kernel,
            signature={
                "x_ptr": x,
                **weights,
                "members_ptr": "*i64",
                "starts_ptr": "*i64",
                **state,
                "d": "i32",
                "clusters": "i32",
            },
            constexprs={"BK": coordinates(128)},
            options={"num_warps": 1},
            dtype=dtype,
            common=bool(weights),
        )
        config = join(4)
        yield Case(
            name=f"gain-{name}",
            kernel=clusters.gain_kernel,
            signature={
                "x_ptr": x,
                **weights,
                "labels_ptr": "*i64",
                **state,
                "alpha_ptr": "*fp64",
                "partial_ptr": acc,
                "candidate_ptr": "*i32",
                "target_ptr": "*i64",
                "gain_ptr": acc,
                "n": "i32",
                "d": "i32",
                "q": "i32",
            },
            constexprs={
                "COUNT": 4,
                "ROOM": room(4),
                "ACC": accumulate,
                "BM": config.bm,
                "BK": config.bk,
            },
            options=config.options(),
            dtype=dtype,
            common=bool(weights),
        )
        for d in (32, 2048):
            yield Case(
                name=f"move-d{d}-{name}",
                kernel=clusters.move_kernel,
                signature={
                    "x_ptr": x,
                    **weights,
                    "labels_ptr": "*i64",
                    **state,
                    "slot_offsets_ptr": "*i64",
                    "order_ptr": "*i64",
                    "order_offsets_ptr": "*i64",
                    "target_ptr": "*i64",
                    "alpha_ptr": "*fp64",
                    "moved_ptr": "*i64",
                    "d": "i32",
                    "q": "i32",
                },
                constexprs={"BK": coordinates(d), "BLOCK": SLOT_BLOCK},
                options={"num_warps": 4},
                dtype=dtype,
                common=d == 32 and bool(weights),
            )
    yield Case(
        name=f"instance-sums-{dtype}",
        kernel=pairs.instance_sums_kernel,
        signature={
            "sums_ptr": "*fp64",
            "offsets_ptr": "*i64",
            "out_ptr": "*fp64",
            "splits": "i32",
        },
        constexprs={"BLOCK": SUM_BLOCK},
        options={"num_warps": 4},
        dtype=dtype,
        common=True,
    )


def aot_cases() -> list[Case]:
    """Every kernel x dtype x launch; ``common`` marks the subset for every target.

    Names that end in ``HIP`` are launches on AMD, whose passes over pairs are others.
    """
    cases = [case for dtype in DTYPES for case in _join_cases(dtype)]
    cases += [c for dtype in DTYPES for hip in (False, True) for c in _sweep_cases(dtype, hip)]
    return cases + [case for dtype in ("fp32", "fp64") for case in _cluster_cases(dtype)]
