"""Checks of the arguments that this family's functions share; all raise before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks

METHODS = ("auto", "exact", "polynomial", "hybrid")
COEFFICIENTS = ("taylor", "hermite")
HIGHEST_DEGREE = 16


def set_names(stem: str, sets: int, listed: bool) -> list[str]:
    """Names of the arguments of each key set: k1, k2, or keys[0], keys[1], ..."""
    if listed:
        plural = {"k": "keys", "v": "values", "mask": "masks"}[stem]
        return [f"{plural}[{m}]" for m in range(sets)]
    return [f"{stem}{m + 1}" for m in range(sets)]


def check_tensors(
    q: Any, keys: Sequence[Any], values: Sequence[Any], *, listed: bool = False
) -> None:
    """q (B, Hq, N, D), keys (B, Hkv, M, D) and values (B, Hkv, M, Dv), one dtype and device."""
    key_names, value_names = (set_names(s, len(keys), listed) for s in "kv")
    named = [("q", q), *zip(key_names, keys, strict=True), *zip(value_names, values, strict=True)]
    for name, t in named:
        _checks.floating_tensor(name, t)
        if t.dim() != 4:
            raise _checks.fail_value(
                name, "shape (batch, heads, length, head dimension)", tuple(t.shape)
            )
        if t.dtype != q.dtype:
            raise _checks.fail_kind(name, f"the dtype of q, {q.dtype}", str(t.dtype))
        if t.device != q.device:
            raise _checks.fail_value(name, f"the device of q, {q.device}", t.device)
    batch, heads, _, dim = q.shape
    if dim == 0:
        raise _checks.fail_value("q", "a head dimension of at least 1", 0)
    shared = keys[0].shape[1]
    if shared == 0 or heads % shared != 0:
        raise _checks.fail_value(
            key_names[0], f"a number of heads that divides q's {heads}", shared
        )
    width = values[0].shape[3]
    if width == 0:
        raise _checks.fail_value(value_names[0], "a head dimension of at least 1", 0)
    for key_name, value_name, k, v in zip(key_names, value_names, keys, values, strict=True):
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch, shared, dim):
            raise _checks.fail_value(
                key_name, f"shape ({batch}, {shared}, length, {dim})", tuple(k.shape)
            )
        if (v.shape[0], v.shape[1], v.shape[2], v.shape[3]) != (batch, shared, k.shape[2], width):
            raise _checks.fail_value(
                value_name,
                f"shape ({batch}, {shared}, {k.shape[2]}, {width}), for {key_name} of length "
                f"{k.shape[2]}",
                tuple(v.shape),
            )


def check_lists(keys: Any, values: Any) -> None:
    """Lists of one tensor for each key set, two sets or more: order 3 and up."""
    for name, found in (("keys", keys), ("values", values)):
        if not isinstance(found, (list, tuple)):
            raise _checks.fail_type(name, "a list of tensors, one for each key set", found)
    if len(keys) < 2:
        raise _checks.fail_value(
            "keys", "at least 2 key sets (order 3); order 2 is F.scaled_dot_product_attention",
            len(keys),
        )  # fmt: skip
    if len(values) != len(keys):
        raise _checks.fail_value("values", f"one for each of {len(keys)} key sets", len(values))


def check_masks(masks: Sequence[Any], keys: Sequence[Tensor], *, listed: bool = False) -> None:
    for name, mask, k in zip(set_names("mask", len(keys), listed), masks, keys, strict=True):
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise _checks.fail_type(name, "a bool tensor, True where a key is read, or None", mask)
        _checks.dense(name, mask)
        if mask.dtype != torch.bool:
            raise _checks.fail_kind(
                name, "a bool tensor, True where a key is read", str(mask.dtype)
            )
        if tuple(mask.shape) != (k.shape[0], k.shape[2]):
            raise _checks.fail_value(name, f"shape ({k.shape[0]}, {k.shape[2]})", tuple(mask.shape))
        if mask.device != k.device:
            raise _checks.fail_value(name, f"the device of q, {k.device}", mask.device)


def check_mask_list(masks: Any, keys: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """One mask or None for each key set; None: none at all."""
    if masks is None:
        return (None,) * len(keys)
    if not isinstance(masks, (list, tuple)):
        raise _checks.fail_type("masks", "a list, one for each key set, or None", masks)
    if len(masks) != len(keys):
        raise _checks.fail_value("masks", f"one for each of {len(keys)} key sets", len(masks))
    check_masks(masks, keys, listed=True)
    return tuple(masks)


def check_window(window: Any, sets: int) -> tuple[int, ...]:
    """The window as the operators take it: () for none, else a width for each key set."""
    if window is None:
        return ()
    expected = f"None or {sets} ints >= 0, one for each key set"
    if not isinstance(window, (list, tuple)):
        raise _checks.fail_type("window", expected, window)
    for w in window:
        if isinstance(w, bool) or not isinstance(w, int):
            raise _checks.fail_type("window", expected, w)
    if len(window) != sets or min(window) < 0 or max(window) >= 2**31:
        raise _checks.fail_value("window", expected, tuple(window))
    return tuple(window) if any(window) else ()


def check_scale(scale: Any, dim: int) -> float:
    if scale is None:
        return float(dim) ** -0.5
    _checks.number("scale", scale)
    if scale in (float("inf"), -float("inf")):
        raise _checks.fail_value("scale", "a finite number", scale)
    return float(scale)


def check_method(method: Any, degree: Any, coefficients: Any, tol: Any) -> None:
    """Each by itself, and whether they go together."""
    _checks.one_of("method", method, METHODS)
    _checks.one_of("coefficients", coefficients, COEFFICIENTS)
    check_degree(degree)
    check_tolerance(tol)
    if method == "exact" and degree is not None:
        raise _checks.fail_value("degree", 'None with method="exact"', degree)
    if method == "hybrid" and tol is not None:
        raise _checks.fail_value("tol", 'None with method="hybrid"; give degree', tol)
    if method == "auto" and tol is None and degree is not None:
        raise _checks.fail_value("degree", 'None with method="auto" and no tol', degree)


def check_degree(degree: Any) -> None:
    if degree is not None:
        _checks.integer_between("degree", degree, 1, HIGHEST_DEGREE)


def check_tolerance(tol: Any) -> None:
    if tol is not None:
        _checks.number("tol", tol)
        if tol <= 0:
            raise _checks.fail_value("tol", "a number > 0 or None", tol)
