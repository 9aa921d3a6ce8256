"""Codebooks: which few-bit code an input gets, and which value stands for f'(x) in the backward.

``fit_codebook`` finds the best one for an activation, a number of bits and a density of the input;
``default_codebook``, ``default_gated_codebook`` and ``normal_codebook`` return ready ones for
standard normal inputs. ``write_table()`` writes these to ``codebooks.json``.

Source: Novikov et al., "Few-Bit Backward: Quantized Gradients of Activation Functions for Memory
Footprint Reduction", ICML 2023, for codes by interval and their dynamic programme. Codes by value,
codes for stochastic rounding and codes for gated units are derived (see ``quantiser``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._modes import ordinary_tensors
from . import quantiser
from .quantiser import Array, Index, single
from .reference import FUNCTIONS, Function
from .tables import (
    MAX_BORDERS,
    MODES,
    Codebook,
    GatedCodebook,
    check_bits,
)
from .target import Problem, builtin, check_params, density_of, resolve

__all__ = [
    "GATED",
    "Codebook",
    "GatedCodebook",
    "default_codebook",
    "default_gated_codebook",
    "fit_codebook",
    "fit_gated_codebook",
    "normal_codebook",
]

GATED = ("gelu", "gelu_tanh", "silu")
_TABLE = Path(__file__).with_name("codebooks.json")
_TABLE_BITS = (1, 2, 3, 4)


# ---------------------------------------------------------------------------------------------
# Fitting


@ordinary_tensors()
def fit_codebook(
    fn: str | Callable[..., Any],
    bits: int,
    *,
    density: str = "normal",
    mean: float = 0.0,
    std: float = 1.0,
    low: float | None = None,
    high: float | None = None,
    mode: str = "value",
    samples: Any = None,
    params: tuple[float, ...] | None = None,
) -> Codebook:
    """The codebook of least E[(f'(x) - q(x))^2] with 2**bits levels.

    Args:
        fn: name of a built-in function, or any elementwise callable that torch differentiates in
            float64.
        bits: 1 to 8 (the operations take 1 to 4).
        density: "normal" (mean, std), "uniform" (low, high), or that of ``samples``: any shape, at
            least 16 finite values, of which up to 262144 evenly spread ones are used as they are,
            so that ties and spikes count at their full weight.
        mode: "value": a code per value of f', intervals of x with the same value share it (never
            worse); "interval": a code per interval of x, as in the paper; "stochastic": least
            variance of unbiased stochastic rounding. Its end levels cover f' on all of R for
            built-ins; for a callable, on the support of the density padded by half its width.
        params: scalar parameters of a built-in function, its defaults if None.

    Returns:
        Codebook with float32-representable borders and levels, ``mse`` to 9 digits. Deterministic.
        Levels beyond those needed (f' with few values) repeat the last one.

    Raises:
        TypeError, ValueError: on bad arguments; on an ``fn`` that is not elementwise, not
            differentiable or not finite; on more than 255 borders (mode "interval" has fewer).

    Complexity: O(n^2 2**bits) with n = 640 up to 7 bits, plus one sort of the samples.
    """
    count = 2 ** check_bits(bits)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    target = resolve(fn, params)
    problem = Problem(target, density_of(density, mean, std, low, high, samples))
    borders, codes, levels, mse = _FIT[mode](problem, count)
    return Codebook(
        torch.from_numpy(borders),
        torch.from_numpy(codes),
        torch.from_numpy(levels),
        bits,
        name=target.name,
        params=target.params,
        density=problem.density.text,
        mode=mode,
        mse=_nine(mse),
        fn=target.fn,
    )


def _nine(x: float) -> float:
    return float(f"{max(x, 0.0):.9g}")


def _pad(levels: Array, count: int) -> Array:
    return np.concatenate([levels, np.repeat(levels[-1:], count - len(levels), axis=0)])


def _error(problem: Problem, borders: Array, codes: Index, levels: Array) -> Array:
    """(C,) E[(v - level)^2] of the finished, rounded tables (K, C)."""
    x, w, v = problem.atoms(borders)
    gap = v - levels[codes[np.searchsorted(borders, x)]]
    return (w @ gap**2) / w.sum()


def _intervals(problem: Problem, count: int) -> tuple[Array, Index, Array, Array]:
    """Borders, codes, levels (K, C) and errors (C,) of the best consecutive intervals."""
    x, w, v = problem.x, problem.w, problem.v
    positions = quantiser.stops(w, v, count)
    cuts = quantiser.partition(quantiser.variance_cost(w, v), positions, count)
    scale = float(np.sqrt((w @ x**2) / w.sum()))
    if problem.exact:
        borders = quantiser.interval_borders(problem.field, cuts, x)
        borders = np.unique(single(borders, scale))
    else:
        inner = np.unique(cuts[1:-1])
        inner = inner[(inner > 0) & (inner < len(x))]
        borders = single(0.5 * (x[inner - 1] + x[inner]), scale)
        # Rounding must not carry a border onto the sample on its right.
        borders = np.unique(np.where(borders >= x[inner], single(x[inner - 1], 0.0), borders))
    x, w, v = problem.atoms(borders)
    group = np.searchsorted(borders, x)
    mass = np.bincount(group, w)
    levels = np.stack([np.bincount(group, w * c) / mass for c in v.T], 1)
    levels = single(levels, float(np.abs(levels).max()))
    change = (levels[1:] != levels[:-1]).any(1)  # fewer values than levels: nothing to separate
    borders, levels = borders[change], levels[np.concatenate([[True], change])]
    codes = np.arange(len(borders) + 1)
    levels = _pad(levels, count)
    return borders, codes, levels, _error(problem, borders, codes, levels)


def _fit_interval(problem: Problem, count: int) -> tuple[Array, Index, Array, float]:
    borders, codes, levels, errors = _intervals(problem, count)
    return borders, codes, levels[:, 0], float(errors[0])


def _fit_value(problem: Problem, count: int) -> tuple[Array, Index, Array, float]:
    value, w = problem.sorted_values()
    v = value[:, None]
    cuts = quantiser.partition(quantiser.variance_cost(w, v), quantiser.stops(w, v, count), count)
    start = np.unique(cuts[:-1])
    start = start[start < len(w)]
    levels = np.add.reduceat(w * value, start) / np.add.reduceat(w, start)
    if problem.exact:
        levels = quantiser.value_levels(problem.field, levels)
    rounded = single(levels, float(np.abs(value).max()))
    rounded, distinct = np.unique(rounded, return_index=True)
    thresholds = 0.5 * (levels[distinct][1:] + levels[distinct][:-1])
    levels = rounded
    width = float(np.sqrt((problem.w @ problem.x**2) / problem.w.sum()))
    borders = np.unique(single(problem.field.crossings(thresholds), width))
    ends = problem.field.edges[[0, -1]]
    borders = borders[(borders > ends[0]) & (borders < ends[1])]
    middle = np.concatenate([ends[:1], borders, ends[1:]])
    middle = 0.5 * (middle[1:] + middle[:-1])
    codes = np.searchsorted(thresholds, problem.field.curve(middle)[:, 0])
    change = codes[1:] != codes[:-1]
    borders, codes = borders[change], codes[np.concatenate([[True], change])]
    if len(borders) > MAX_BORDERS:
        raise ValueError(
            f"f' crosses its thresholds {len(borders)} times and a codebook holds "
            f"{MAX_BORDERS} borders; use mode='interval'"
        )
    error = _error(problem, borders, codes, levels[:, None])
    return borders, codes, _pad(levels, count), float(error[0])


def _fit_stochastic(problem: Problem, count: int) -> tuple[Array, Index, Array, float]:
    value, w = problem.sorted_values()
    low, high = problem.derivative_range()
    cost = quantiser.rounding_cost(w, value, low, high)
    positions = quantiser.stops(w, value[:, None], count)
    positions = np.unique(np.concatenate([positions, [len(w) + 1]]))
    cuts = quantiser.partition(cost, positions, count - 1)
    inner = cuts[(cuts > 0) & (cuts <= len(w))]
    levels = np.concatenate([[low], value[np.unique(inner) - 1], [high]])
    if problem.exact:
        values = np.sort(problem.v[:, 0])
        ties = np.searchsorted(values, levels, "right") - np.searchsorted(values, levels, "left")
        levels = quantiser.rounding_levels(problem.field, levels, ties > 16)
    inside = single(levels[1:-1], max(abs(low), abs(high)))
    levels = np.unique(np.concatenate([[low], inside[(inside > low) & (inside < high)], [high]]))
    _, w, v = problem.atoms(problem.field.crossings(levels[1:-1]) if problem.exact else np.empty(0))
    k = np.clip(np.searchsorted(levels, v[:, 0]) - 1, 0, max(len(levels) - 2, 0))
    upper = levels[np.minimum(k + 1, len(levels) - 1)]
    variance = (w @ ((upper - v[:, 0]) * (v[:, 0] - levels[k]))) / w.sum()
    return np.empty(0), np.zeros(1, dtype=np.int64), _pad(levels, count), float(variance)


_FIT = {"interval": _fit_interval, "value": _fit_value, "stochastic": _fit_stochastic}


@ordinary_tensors()
def fit_gated_codebook(
    name: str, bits: int, *, mean: float = 0.0, std: float = 1.0, samples: Any = None
) -> GatedCodebook:
    """One interval code of g for y = act(g) u with jointly optimal borders (derived).

    Minimises E[(act' - level)^2] / E[act'^2] + E[(act - value)^2] / E[act^2], the vector-valued
    form of mode "interval".

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        bits, mean, std, samples: as in ``fit_codebook``.
    """
    count = 2 ** check_bits(bits)
    if name not in GATED:
        raise ValueError(f"name must be one of {GATED}, got {name!r}")
    target = resolve(name, None)
    density = density_of("normal", mean, std, None, None, samples)
    raw = Problem(target, density, target.both)
    norm = np.sqrt((raw.w @ raw.v**2) / raw.w.sum())
    problem = Problem(target, density, lambda x: target.both(x) / norm)
    borders, codes, tables, _ = _intervals(problem, count)
    tables = single(tables * norm, float(norm.max()))
    errors = _error(raw, borders, codes, tables)
    return GatedCodebook(
        torch.from_numpy(borders),
        torch.from_numpy(codes),
        torch.from_numpy(tables[:, 0].copy()),
        bits,
        name=name,
        density=density.text,
        values=torch.from_numpy(tables[:, 1].copy()),
        mse_derivative=_nine(float(errors[0])),
        mse_value=_nine(float(errors[1])),
    )


# ---------------------------------------------------------------------------------------------
# Ready codebooks


def default_codebook(
    name: str, bits: int, params: tuple[float, ...] | None = None, mode: str = "value"
) -> Codebook:
    """Codebook of a built-in function for standard normal input; made once, then kept.

    ``mode="auto"`` is what the functions use when no codebook is given: the one of mode "value",
    unless that of mode "interval" has fewer borders, hence cheaper codes, at an mse within 1 %.

    Functions whose derivative has two values (``Function.exact``) have one codebook, of 1 bit and
    without error, the same for every mode. Its borders describe the predicate; the kernels evaluate
    the predicate itself, which differs where x equals a border.

    Args:
        name: key of ``functions.FUNCTIONS``.
        bits: 1 to 8; 1 for exact functions.
        params: scalar parameters, the function's defaults if None.
        mode: as in ``fit_codebook``, or "auto".

    Raises:
        TypeError, ValueError: as ``fit_codebook``; on bits other than 1 for an exact function.
    """
    check_bits(bits)
    if mode not in (*MODES, "auto"):
        raise ValueError(f"mode must be one of {(*MODES, 'auto')}, got {mode!r}")
    function = builtin(name)
    mode = "value" if function.exact else mode
    return _default(function.name, bits, check_params(function, params), mode)


@lru_cache(maxsize=512)
@ordinary_tensors()
def _default(name: str, bits: int, params: tuple[float, ...], mode: str) -> Codebook:
    function = builtin(name)
    if function.exact:
        return _exact(function, bits, params)
    if mode == "auto":
        by_value = _default(name, bits, params, "value")
        if len(by_value.borders) < 2**bits:
            return by_value
        by_interval = _default(name, bits, params, "interval")
        return by_interval if _cheaper(by_value, by_interval) else by_value
    stored = _stored().get(_key(mode, name, bits))
    if stored is not None and params == function.defaults:
        return Codebook.from_dict(stored)
    return fit_codebook(name, bits, params=params, mode=mode)


def _cheaper(by_value: Codebook, by_interval: Codebook) -> bool:
    """Whether intervals do nearly as well with fewer borders."""
    fewer = len(by_interval.borders) < len(by_value.borders)
    assert by_interval.mse is not None and by_value.mse is not None, "a fit measures itself"
    return fewer and by_interval.mse <= 1.01 * by_value.mse


def _exact(function: Function, bits: int, params: tuple[float, ...]) -> Codebook:
    if bits != 1:
        raise ValueError(f"bits must be 1 for {function.name}, whose f' has 2 values, got {bits}")
    assert function.exact_levels is not None
    target = resolve(function.name, params)
    borders = np.unique(single(np.array(target.breakpoints), 0.0))
    ends = np.concatenate([borders[:1] - 1, borders, borders[-1:] + 1])
    middle = target.curve(0.5 * (ends[1:] + ends[:-1]))[:, 0]
    low, high = function.exact_levels(*params)
    return Codebook(
        torch.from_numpy(borders),
        torch.from_numpy((middle == high).astype(np.int64)),
        torch.from_numpy(single(np.array([low, high]), 0.0)),
        1,
        name=function.name,
        params=params,
        density="any",
        mode="value",
        mse=0.0,
        fn=function.forward,
    )


def default_gated_codebook(name: str, bits: int) -> GatedCodebook:
    """Gated codebook of "gelu", "gelu_tanh" or "silu" for standard normal g; made once."""
    check_bits(bits)
    if name not in GATED:
        raise ValueError(f"name must be one of {GATED}, got {name!r}")
    return _default_gated(name, bits)


@lru_cache(maxsize=64)
@ordinary_tensors()
def _default_gated(name: str, bits: int) -> GatedCodebook:
    stored = _stored().get(_key("gated", name, bits))
    return fit_gated_codebook(name, bits) if stored is None else GatedCodebook.from_dict(stored)


def normal_codebook(bits: int) -> Codebook:
    """Lloyd-Max quantiser of a standard normal variable: q(x) stands for x itself.

    The name of its function is "half_square": f(x) = x^2 / 2 has f'(x) = x. The same name in
    ``fit_codebook`` fits a quantiser of x to other densities and to samples.
    """
    return default_codebook("half_square", bits)


def _key(kind: str, name: str, bits: int) -> str:
    return f"{kind}/{name}/{bits}"


@lru_cache(maxsize=1)
def _stored() -> dict[str, dict[str, Any]]:
    """Entries of codebooks.json; its numbers are the shortest that give the float32 value back."""
    entries: dict[str, dict[str, Any]] = json.loads(_TABLE.read_text())
    for entry in entries.values():
        for name in {"borders", "levels", "values"} & entry.keys():
            entry[name] = np.array(entry[name], dtype=np.float32).astype(np.float64).tolist()
    return entries


def _entry(code: Codebook | GatedCodebook) -> dict[str, Any]:
    data = code.to_dict()
    for name in {"borders", "levels", "values"} & data.keys():
        data[name] = [float(str(np.float32(v))) for v in data[name]]
    return data


def table_text() -> str:
    """Contents of codebooks.json: every smooth built-in at its default parameters, 1 to 4 bits."""
    entries = {}
    smooth = [name for name, function in FUNCTIONS.items() if not function.exact]
    for bits in _TABLE_BITS:
        for name in smooth:
            code = {mode: fit_codebook(name, bits, mode=mode) for mode in MODES}
            if not _cheaper(code["value"], code["interval"]):
                del code["interval"]
            entries.update({_key(mode, name, bits): _entry(c) for mode, c in code.items()})
        entries[_key("value", "half_square", bits)] = _entry(fit_codebook("half_square", bits))
        for name in GATED:
            entries[_key("gated", name, bits)] = _entry(fit_gated_codebook(name, bits))
    rows = (f'"{key}":{json.dumps(entry, separators=(",", ":"))}' for key, entry in entries.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


def write_table() -> None:
    """Rewrites codebooks.json next to this file."""
    _TABLE.write_text(table_text())
