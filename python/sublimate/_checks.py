"""Argument checks shared by all families.

Every public function calls these before anything runs, so bad input never reaches a kernel. Each
raises TypeError or ValueError naming the argument, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fail_type(argument: str, expected: str, got: Any) -> TypeError:
    """``got`` is the value itself: its type is named, and a string also shown."""
    shown = f"str {got!r}" if isinstance(got, str) else type(got).__name__
    return fail_kind(argument, expected, shown)


def fail_kind(argument: str, expected: str, got: str) -> TypeError:
    """``got`` says in words what came."""
    return TypeError(f"{argument}: expected {expected}, got {got}")


def fail_value(argument: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"{argument}: expected {expected}, got {got}")


def floating_tensor(argument: str, x: Any) -> None:
    """A strided tensor of fp32, fp16, bf16 or fp64."""
    if not isinstance(x, Tensor):
        raise fail_type(argument, "a torch.Tensor", x)
    if x.dtype not in FLOATING:
        raise fail_kind(argument, "a tensor of float32, float16, bfloat16 or float64", str(x.dtype))
    dense(argument, x)


def dense(argument: str, x: Tensor) -> None:
    """One block of numbers with strides: neither sparse nor nested."""
    if x.layout != torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else str(x.layout)
        raise fail_kind(argument, "a dense (strided) tensor", got)


def readable(argument: str, x: Tensor) -> None:
    """A dense tensor whose values can be looked at; one on "meta" has none."""
    dense(argument, x)
    if x.is_meta:
        raise fail_value(argument, "a tensor with values", "one on the device meta")


def flags(**values: Any) -> None:
    for argument, value in values.items():
        if not isinstance(value, bool):
            raise fail_type(argument, "a bool", value)


def module(argument: str, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise fail_type(argument, "a torch.nn.Module", model)


def same_as(argument: str, x: Tensor, other_argument: str, other: Tensor) -> None:
    """x agrees with other in shape, dtype and device."""
    if x.shape != other.shape:
        raise fail_value(
            argument, f"the shape of {other_argument}, {tuple(other.shape)}", tuple(x.shape)
        )
    if x.dtype != other.dtype:
        raise fail_kind(argument, f"the dtype of {other_argument}, {other.dtype}", str(x.dtype))
    if x.device != other.device:
        raise fail_value(argument, f"the device of {other_argument}, {other.device}", x.device)


def integer_between(argument: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise fail_type(argument, f"an int from {low} to {high}", value)
    if not low <= value <= high:
        raise fail_value(argument, f"an int from {low} to {high}", value)


def number(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise fail_type(argument, "a number", value)
    if value != value:
        raise fail_value(argument, "a number", value)
    if isinstance(value, int) and not -1.7e308 <= value <= 1.7e308:
        raise fail_value(argument, "a number that float64 holds", "a larger int")


def one_of(argument: str, value: Any, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if not isinstance(value, str):
        raise fail_type(argument, f"one of {', '.join(map(repr, choices))}", value)
    if value not in choices:
        raise fail_value(argument, f"one of {', '.join(map(repr, choices))}", repr(value))


def seed(argument: str, value: Any) -> None:
    """None, an int in [0, 2**63), or a 0-dim int64 tensor."""
    if value is None:
        return
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.dim() != 0:
            raise fail_kind(
                argument,
                "an int or a 0-dim int64 tensor",
                f"a {value.dim()}-dim tensor of {value.dtype}",
            )
        return
    if isinstance(value, (bool, float, str)) or not isinstance(value, (int, torch.SymInt)):
        raise fail_type(argument, "an int or a 0-dim int64 tensor", value)
    if value < 0 or value >= 2**63:
        raise fail_value(argument, "an int in [0, 2**63)", value)
