"""Runs cases: parity first, then interleaved timing, then memory; gives rows for the CSV."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatch

import torch
from sublimate import memory
from sublimate._parity import Measurement

from . import ceilings, record, timing
from .case import Case, Forward, Provider, Unavailable
from .record import Row

#: Families that have cases, ``bench.<family>.cases.cases(quick)``.
FAMILIES = ("fewbit", "kronecker_attention", "multicut", "path_integral", "randomized_linear")


def collect(families: tuple[str, ...], pattern: str, quick: bool) -> list[Case]:
    """The cases of the families that match the pattern and whose device is here."""
    found: list[Case] = []
    for family in families:
        found += importlib.import_module(f"bench.{family}.cases").cases(quick)
    here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [c for c in found if c.device in here and fnmatch(c.id, pattern)]


def run_case(
    case: Case, allocator: str, rounds: int, quick: bool, providers: tuple[str, ...] = ()
) -> list[Row]:
    """Measures one case in this process.

    Args:
        allocator: "cold", "warm" or "caching": what this process was started with; recorded.
        rounds: interleaved rounds on a CPU.
        providers: names to take; all if empty.

    Returns:
        One row per mode and provider. A provider that cannot run here has one row saying why; one
        whose parity is red has one row and is not timed.
    """
    base = {
        "case": case.id,
        "family": case.family,
        "op": case.op,
        "bits": case.bits,
        "dtype": str(case.dtype).removeprefix("torch."),
        "elements": case.elements,
        "allocator": allocator,
    }
    inputs, dy = case.inputs()
    rows: list[Row] = []
    forwards: dict[str, Forward] = {}
    for provider in case.providers:
        if providers and provider.name not in providers:
            continue
        forward, problem = _prepare(case, provider, inputs, dy)
        if forward is None:
            rows.append({**base, "provider": provider.name, **problem})
        else:
            forwards[provider.name] = forward
    if not forwards:
        return rows
    samples = timing.interleave(case, forwards, inputs, dy, rounds, quick)
    # Of the size of what is written, if that is more than what is read.
    largest = max(case.elements, math.prod(case.output or ()))
    ceiling = ceilings.measure(case.device, case.dtype, largest, quick)
    for provider in case.providers:
        if provider.name in forwards:
            rows += _rows(
                case, provider, forwards[provider.name], inputs, dy, samples, ceiling, base
            )
    return rows


def _prepare(
    case: Case, provider: Provider, inputs: tuple[torch.Tensor, ...], dy: torch.Tensor
) -> tuple[Forward | None, Row]:
    """The provider's forward after its first call, or None and why not."""
    try:
        forward = provider.make()
        y = forward(*inputs)
        if case.differentiable:
            torch.autograd.grad(y, inputs, dy)
        verify = provider.verify or case.verify
        measured = [] if provider.peer else verify(forward, inputs, dy)
    except Exception as error:
        first = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {first[0] if first else ''}"[:300]
        # A peer or a missing backend is only reported; a kernel of ours that breaks is red.
        missing = provider.peer or isinstance(error, Unavailable)
        return None, {"parity": "" if missing else "red", "note": reason}
    bad = [m for m in measured if not m.passed]
    if bad:
        return None, {"parity": "red", "note": "; ".join(_told(m) for m in bad[:3])}
    return forward, {}


def _told(m: Measurement) -> str:
    return (
        f"{m.variant} {m.quantity}: {m.max_error:.3g} (limit {m.max_limit:.3g}), "
        f"RMS {m.rms_error:.3g} (limit {m.rms_limit:.3g})"
    )


def _rows(
    case: Case,
    provider: Provider,
    forward: Forward,
    inputs: tuple[torch.Tensor, ...],
    dy: torch.Tensor,
    samples: dict[tuple[str, str], list[float]],
    ceiling: ceilings.Ceilings,
    base: Row,
) -> Iterator[Row]:
    def step() -> None:
        torch.autograd.grad(forward(*inputs), inputs, dy)

    def keep() -> None:
        held.append(forward(*inputs))

    held: list[torch.Tensor] = []
    gradient_error = provider.gradient_error or case.gradient_error
    shared: Row = {
        "provider": provider.name,
        "saved_bytes": int(memory.saved_bytes(forward, *inputs)),
        "gradient_error": f"{gradient_error(forward, inputs, dy):.4g}",
        "parity": "peer" if provider.peer else "pass",
        "copy_gbs": f"{ceiling.copy / 1e9:.4g}",
        "matmul_gflops": f"{ceiling.matmul / 1e9:.4g}",
    }
    peers = [p.name for p in case.providers if p.peer]
    for mode in case.modes:
        taken = samples[mode, provider.name]
        low, middle, high = timing.quantiles(taken)
        moved, flops = case.bytes_moved[mode], (provider.flops or case.flops)[mode]
        least, bound = ceiling.roofline_ms(moved, flops)
        row: Row = {
            **base,
            **shared,
            "mode": mode,
            "samples": len(taken),
            "p20_ms": f"{low:.6g}",
            "p50_ms": f"{middle:.6g}",
            "p80_ms": f"{high:.6g}",
            "bytes_moved": moved,
            "flops": flops,
            "roofline_ms": f"{least:.6g}",
            # Below a hundredth of the time, the call itself is what costs.
            "bound": bound if least > 0.01 * middle else "dispatch",
            "fraction": f"{least / middle:.4g}",
        }
        if mode != "bwd":
            held.clear()
            row["peak_bytes"] = timing.peak_bytes(case.device, keep if mode == "fwd" else step)
        ratios: dict[str, str] = {}
        for peer in peers:
            if (mode, peer) in samples:
                median = timing.quantiles(samples[mode, peer])[1]
                ratios[peer] = f"{middle / median:.4g}"
        for peer, ratio in ratios.items():
            # Peers of one family alone have no column; they are told in words.
            if f"ratio_{peer}" in record.COLUMNS:
                row[f"ratio_{peer}"] = ratio
        others = [f"{ratio} of {p}" for p, ratio in ratios.items() if f"ratio_{p}" not in row]
        row["note"] = ", ".join(others)
        if not provider.peer:
            row |= _bars(case, provider, mode, peers, ratios, least / middle)
        yield row


def _bars(
    case: Case,
    provider: Provider,
    mode: str,
    peers: list[str],
    ratios: dict[str, str],
    fraction: float,
) -> Row:
    """What the case should reach, and whether it did ("yes", "no", or empty without a bar)."""
    met = []
    bars: Row = {}
    limit = (case.bars if provider.bars is None else provider.bars).get(mode, math.inf)
    ratio = ratios.get(peers[0]) if peers else None
    if limit < math.inf and ratio is not None:
        bars["bar"] = limit
        met.append(float(ratio) <= limit)
    if case.least_fraction:
        bars["fraction_bar"] = case.least_fraction
        met.append(fraction >= case.least_fraction)
    return {**bars, "bar_met": ("yes" if all(met) else "no")} if met else bars


def run(
    cases: list[Case],
    allocator: str,
    rounds: int,
    quick: bool,
    providers: tuple[str, ...] = (),
    tell: Callable[[Case, list[Row]], None] = lambda case, rows: None,
) -> list[Row]:
    """Rows of all cases, with the environment's columns; ``tell`` is called after each case."""
    known: dict[str, Row] = {}
    rows: list[Row] = []
    for case in cases:
        if case.device not in known:
            known[case.device] = record.environment(case.device)
        found = [
            {**known[case.device], **row}
            for row in run_case(case, allocator, rounds, quick, providers)
        ]
        rows += found
        tell(case, found)
    return rows
