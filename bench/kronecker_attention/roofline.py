"""Estimates, not measurements: what each launch of the Triton kernels could reach on a GPU.

    PYTHONPATH=tests python -m bench.kronecker_attention.roofline

rewrites roofline.csv, and the table of the family's README, from the launches
(kernels/kronecker_attention/configs.py) and from what the compiler says they take
(tests/kronecker_attention/triton_budget.csv).

A tile step is one key of the first set against a tile of rows and keys (features: a tile of rows
and monomials). Its clocks on one multiprocessor are counted for each unit alone: products, fp32
arithmetic, exponentials, shared memory (features: loads of elements). "high" supposes that all
units overlap and the longest decides; "low" that they wait for one another, as in one block whose
warps meet at barriers. Where several blocks are resident the truth is nearer to high.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sublimate.kernels.kronecker_attention import aot, configs

HERE = Path(__file__).parent
FILE = HERE / "roofline.csv"
README = HERE.parents[1] / "python" / "sublimate" / "kronecker_attention" / "README.md"
#: Rows, keys of both sets, and the windows where they are narrow: of the estimates.
LENGTH, WINDOWS = 2048, (32, 512)
#: Degree of the estimates of the factored polynomial.
DEGREE = 2


@dataclass(frozen=True)
class Device:
    """Published figures of a device, dense, without its sparse or boosted modes.

    Attributes:
        units: multiprocessors. clock: GHz. tensor: TFLOP/s of products of 2 (16-bit) and of TF32.
        plain: FLOP a clock and unit of products with 16-bit operands of less than 64 rows, which
            are multiplied by the instructions of the oldest device. vector: TFLOP/s of fp32 and
            fp64 arithmetic. matrix: TFLOP/s of IEEE products. memory: TB/s. shared: KiB of shared
            memory a unit, and bytes a clock from it. registers: 32-bit ones a unit; threads: most.
    """

    name: str
    units: int
    clock: float
    tensor: tuple[float, float]
    plain: float
    vector: tuple[float, float]
    matrix: tuple[float, float]
    memory: float
    shared: tuple[int, int]
    registers: int
    threads: int
    warp: int = 32
    exponentials: int = 16

    def a_clock(self, tera: float) -> float:
        """Of a rate in 10^12 a second, what one unit does in a clock."""
        return tera * 1e3 / self.units / self.clock


#: Data sheets of A100 80 GB SXM, H100 SXM, B200 and MI300X. fp64 products that no unit of their own
#: is counted for run at the rate of the vector units, as IEEE fp32 ones on NVIDIA do.
DEVICES = {
    "sm_80": Device("A100", 108, 1.41, (312, 156), 2048, (19.5, 9.7), (19.5, 9.7), 2.04,
                    (164, 128), 65536, 2048),
    "sm_90": Device("H100", 132, 1.83, (989, 494), 2048, (67, 34), (67, 34), 3.35,
                    (228, 128), 65536, 2048),
    "sm_100": Device("B200", 148, 1.85, (2250, 1125), 2048, (75, 37), (75, 37), 8.0,
                     (228, 128), 65536, 2048),
    "gfx942": Device("MI300X", 304, 2.1, (1307, 653), 4096, (163, 82), (163, 82), 5.3,
                     (64, 128), 131072, 2048, warp=64),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Of one tile step on one unit: clocks of each kind of work, and FLOPs that count as useful.

    one_unit: products are made by the unit of the other arithmetic, so that the two add up.
    """

    products: float
    arithmetic: float
    exponentials: float
    traffic: float
    useful: float
    one_unit: bool

    @property
    def low(self) -> float:
        return self.products + self.arithmetic + self.exponentials + self.traffic

    @property
    def high(self) -> float:
        both = self.products + self.arithmetic if self.one_unit else self.arithmetic
        return max(self.products, both, self.exponentials, self.traffic)

    def bound(self) -> str:
        kinds = ("products", "arithmetic", "exponentials", "traffic")
        return max(kinds, key=lambda kind: getattr(self, kind))


def rate_of_products(device: Device, size: int, precision: str, rows: int) -> float:
    """FLOP a clock and unit."""
    if precision == "tf32":
        full, plain = device.tensor[1], device.plain / 2
    elif size == 2:
        full, plain = device.tensor[0], device.plain
    else:
        return device.a_clock(device.matrix[size == 8])
    # Warp-group and tensor-memory products take 64 rows; AMD's and A100's any number.
    return min(device.a_clock(full), plain) if rows < 64 else device.a_clock(full)


def by_threads(device: Device, precision: str, size: int) -> bool:
    """Whether each thread multiplies from its registers, as IEEE products on NVIDIA."""
    return precision == "ieee" and size > 2 and device.warp == 32


def operands(device: Device, flops: float, size: int, tile: configs.Config) -> float:
    """Clocks to load what threads multiply: two numbers a multiplication, fewer by the root of the
    results that a thread has; 128 bytes a clock, four multiplications of a warp by a load of 16."""
    results = max(1.0, tile.bm * tile.bn / (tile.warps * device.warp))
    return flops / results**0.5 / 128 * size / 4


def attention_step(kernel: str, device: Device, size: int, precision: str, d: int,
                   tile: configs.Config, polynomial: bool) -> Step:  # fmt: skip
    """Products: 2, 3 and 4 of 2 bm bn D each. Shared memory: the operand that was computed is
    written and read, the other read, of each product."""
    pairs, folded = tile.bm * tile.bn, (tile.bn if kernel == "key" else tile.bm) * d
    counts = {"forward": 2, "query": 3, "key": 4}
    rows = tile.bn if kernel == "key" else tile.bm
    flops = counts[kernel] * 2 * pairs * d
    lanes = device.a_clock(device.vector[size == 8]) / 2
    # Of a pair: its share of the sum, rounding; mask, dP - delta, dS and its rounding.
    of_pair = {"forward": 1.5, "query": 3.5, "key": 4}[kernel]
    # Of an element of the folded tile: fold, rounding, sum of what the step adds. The keys' folds
    # and sums are made once for all rows.
    of_fold = {"forward": 2.5, "query": 4, "key": 0.0}[kernel]
    if polynomial:
        of_pair += {"forward": 2, "query": 2, "key": 4}[kernel] * aot.DEGREE / 2
    elif size == 8:
        of_pair += 20  # its exponential is arithmetic
    moved = 2 * folded + (tile.bn if kernel != "key" else tile.bm) * d
    inner = {"forward": pairs * 2 + tile.bn * d, "query": pairs * 2 + 2 * tile.bn * d + 2 * folded,
             "key": pairs * 4 + 3 * tile.bm * d}[kernel]  # fmt: skip
    if kernel == "key":
        moved -= folded  # written once
    has_exponential = not polynomial and size != 8
    threads = by_threads(device, precision, size)
    loads = operands(device, flops, size, tile) if threads else 0.0
    return Step(
        products=flops / rate_of_products(device, size, precision, rows),
        arithmetic=(of_pair * pairs + of_fold * folded) / lanes,
        exponentials=pairs / device.exponentials if has_exponential else 0.0,
        traffic=(moved + inner) * size / device.shared[1] + loads,
        useful=flops if kernel != "key" else flops * 6 / 8,
        one_unit=threads,
    )


def feature_step(kernel: str, device: Device, size: int, precision: str, d: int,
                 tile: configs.Config) -> Step:  # fmt: skip
    """A product of 2 rows monomials Dv; an element is loaded for each factor. The gradient has one
    more product a factor, with a matrix of zeros and ones that is not counted as useful."""
    cells = tile.bm * tile.bn
    flops = 2 * cells * d
    made = cells * DEGREE * (DEGREE if kernel == "gradient" else 1)
    spread = flops * DEGREE if kernel == "gradient" else 0
    lanes = device.a_clock(device.vector[size == 8]) / 2
    threads = by_threads(device, precision, size)
    loads = operands(device, flops + spread, size, tile) if threads else 0.0
    moved = made + 2 * cells + tile.bn * d
    return Step(
        products=(flops + spread) / rate_of_products(device, size, precision, tile.bm),
        arithmetic=2.0 * made / lanes,
        exponentials=0.0,
        traffic=moved * size / device.shared[1] + loads,
        useful=flops,
        one_unit=threads,
    )


def resident(device: Device, tile: configs.Config, registers: int, shared: int) -> int:
    """Blocks at once on a unit, by registers (allocated in eights), shared memory and threads."""
    threads = tile.warps * device.warp
    found = [
        device.registers // (threads * 8 * math.ceil(registers / 8)),
        device.threads // threads,
    ]
    if shared:
        found.append(device.shared[0] * 1024 // (shared + 1024))
    return min(found)


def work(kernel: str, mode: str, d: int, size: int) -> tuple[float, float]:
    """(FLOPs, bytes) of a head of ``LENGTH`` rows: inputs and results once."""
    n = LENGTH
    if kernel in ("moment", "evaluate", "gradient"):
        rank = math.comb(d + DEGREE, DEGREE)
        sums = 4.0 * rank * (d + 1)
        return 2.0 * n * rank * d, 2.0 * n * d * size + sums + (n * d * size) * (
            kernel == "gradient"
        )
    each = {"forward": 4, "query": 6, "key": 6}[kernel] * d
    if mode == "narrow":
        pairs = sum(min(i + 1, WINDOWS[0]) * min(i + 1, WINDOWS[1]) for i in range(n))
    else:
        pairs = n**3
    tensors = {"forward": 6, "query": 7, "key": 6}[kernel]  # read and written, n x d
    result = 4 * n * d * 4 if kernel == "key" else 0  # gradients of keys in fp32
    return float(each) * pairs, float(tensors * n * d * size + result + 8 * n)


COLUMNS = ("kernel", "mode", "dim", "dtype", "target", "device", "rows", "keys", "warps",
           "registers", "shared_bytes", "blocks", "gflop", "mbytes", "flop_per_byte", "bound",
           "tflops_low", "tflops_high", "head_ms_low", "head_ms_high")  # fmt: skip

#: What is estimated: the launches that differ in their tile.
ESTIMATED = {
    "forward": ("full", "narrow", "near"),
    "query": ("full", "narrow", "near"),
    "key": ("full", "near"),
    "moment": ("",),
    "evaluate": ("",),
    "gradient": ("",),
}


def estimate(case: Any, target: str, kernel: str, mode: str, row: Any) -> dict[str, Any]:
    """The line of a case of kernels/kronecker_attention/aot.py and its row of the budget."""
    device, constants = DEVICES[target], case.full_constexprs()
    d, polynomial = constants["D"], mode != "full" and mode != "narrow"
    dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(case.dtype, torch.float16)
    _, size, precision = configs.operand(dtype, polynomial)
    keys = constants["BN"] if "BN" in constants else constants["BA"]
    tile = configs.Config(constants["BM"], keys, case.options["num_warps"])
    step = (
        attention_step(kernel, device, size, precision, d, tile, polynomial)
        if "BN" in constants
        else feature_step(kernel, device, size, precision, d, tile)
    )
    flops, moved = work(kernel, mode, d, 4 if size == 4 else size)
    blocks = resident(device, tile, row.registers, row.shared)
    ceiling = flops / moved * device.memory  # TFLOP/s that memory allows
    rates = [
        min(step.useful / clocks * device.units * device.clock / 1e3, ceiling)
        for clocks in (step.low, step.high)
    ]
    bound = "memory" if rates[1] == ceiling else step.bound()
    return dict(
        zip(
            COLUMNS,
            (kernel, mode, d, case.dtype, target, device.name, tile.bm, keys, tile.warps,
             row.registers, row.shared, blocks, f"{flops / 1e9:.4g}", f"{moved / 1e6:.4g}",
             f"{flops / moved:.4g}", bound, *(f"{r:.3g}" for r in rates),
             *(f"{flops / r / 1e9:.3g}" for r in rates)),
            strict=True,
        )
    )  # fmt: skip


def estimates(budget: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for every kernel, tile, dtype and target."""
    by_name = {case.name: case for case in configs.aot_cases()}
    for target in configs.TARGETS:
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            for kernel, modes in ESTIMATED.items():
                for d in aot.DIMS:
                    for mode in modes:
                        name = "-".join(x for x in (kernel, f"d{d}", mode, dtype, target) if x)
                        if name in by_name:
                            yield estimate(by_name[name], target, kernel, mode, budget[name])


#: What each kernel is called in the README's tables.
SAID = {"forward": "forward", "query": "dq", "key": "keys and values"}


def launch_table(lines: list[dict[str, Any]]) -> str:
    """What bf16 takes on sm_90, as the README has it."""
    found = ["| kernel | D | rows x keys | warps | registers | shared memory |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    kinds = {"full": "", "narrow": ", narrow window or mask", "near": ", polynomial by logits",
             "": ", to degree 6"}  # fmt: skip
    for x in lines:
        if (x["target"], x["dtype"]) != ("sm_90", "bf16") or (
            x["mode"] != "full" and x["dim"] < 64
        ):
            continue
        found.append(
            f"| {SAID.get(x['kernel'], x['kernel'])}{kinds[x['mode']]} | {x['dim']} "
            f"| {x['rows']} x {x['keys']} | {x['warps']} | {x['registers']} "
            f"| {x['shared_bytes'] / 1024:.0f} KiB |"
        )
    return "\n".join(found)


def rate_table(lines: list[dict[str, Any]]) -> str:
    """TFLOP/s from low to high of full attention, as the README has it."""
    names = [device.name for device in DEVICES.values()]
    found = ["| bf16, full | D | bound (H100) | " + " | ".join(names) + " |", "|---" * 7 + "|"]
    by = {(x["kernel"], x["mode"], x["dim"], x["dtype"], x["target"]): x for x in lines}
    for kernel, label in SAID.items():
        for d in aot.DIMS:
            cells = [by[kernel, "full", d, "bf16", target] for target in DEVICES]
            rates = [f"{x['tflops_low']} to {x['tflops_high']}" for x in cells]
            found.append(f"| {label} | {d} | {cells[1]['bound']} | " + " | ".join(rates) + " |")
    return "\n".join(found)


def readme(text: str, lines: list[dict[str, Any]]) -> str:
    """The README with its two tables made anew."""
    for mark, table in (("launches", launch_table(lines)), ("roofline", rate_table(lines))):
        head, first, rest = text.partition(f"<!-- {mark} -->\n")
        _, second, tail = rest.partition(f"<!-- /{mark} -->\n")
        if not first or not second:
            raise ValueError(f"{README}: expected a place for the table {mark!r}")
        text = f"{head}{first}{table}\n{second}{tail}"
    return text


def main() -> None:
    from helpers import triton_budget

    lines = list(estimates(triton_budget.read("kronecker_attention")))
    with FILE.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    README.write_text(readme(README.read_text(), lines))


if __name__ == "__main__":
    main()
