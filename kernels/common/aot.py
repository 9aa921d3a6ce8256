"""What a family declares to have its kernels compiled ahead of time, with no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Triton's names of the element types the kernels take.
DTYPES = ("fp32", "fp16", "bf16", "fp64")


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, the types of its arguments and its constants.

    Attributes:
        name: unique within the family.
        kernel: the ``triton.jit`` function.
        signature: Triton type ("*bf16", "i64", ...) of each argument that is not a constant; an
            argument that is absent here and in ``constexprs`` is the constant None.
        constexprs: value of each constant.
        options: launch options (num_warps, ...).
        dtype: element type, as in ``DTYPES``.
        common: belongs to the subset that is compiled for every target and dtype.
        divisible: integer arguments that are multiples of 16, such as the strides of usual shapes.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    options: Mapping[str, Any]
    dtype: str
    common: bool = False
    divisible: tuple[str, ...] = ()

    def full_signature(self) -> dict[str, str]:
        """Type of every argument, in order; "constexpr" for constants."""
        return {name: self.signature.get(name, "constexpr") for name in self.kernel.arg_names}

    def full_constexprs(self) -> dict[str, Any]:
        """Value of every constant argument; None where nothing is said."""
        names = self.kernel.arg_names
        unknown = (set(self.signature) | set(self.constexprs)) - set(names)
        if unknown:
            raise ValueError(f"{self.name}: no such argument: {sorted(unknown)}")
        return {n: self.constexprs.get(n) for n in names if n not in self.signature}

    def aligned(self) -> dict[tuple[int, ...], Any]:
        """Attributes of a launch on fresh tensors: pointers, and ``divisible``, multiples of 16."""
        return {
            (position,): [["tt.divisibility", 16]]
            for position, name in enumerate(self.kernel.arg_names)
            if self.signature.get(name, "").startswith("*") or name in self.divisible
        }
