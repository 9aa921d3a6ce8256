"""Gated units y = f(gate) * up that keep one branch and a few-bit code of the other.

One code of gate serves two tables, f' for gate's gradient and f for up's, fitted jointly. Formulas,
error tables and the choice of branch: this folder's README. Conventions, errors and backends: the
docstring of ``functional``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _backends, _checks
from .._autograd import refuse_tangents, wants_gradient
from .._dtypes import accumulator
from .._modes import ordinary_tensors
from . import reference
from .autograd import NO_FORWARD_MODE, FewBitGated, ops
from .codebook import GatedCodebook, default_gated_codebook, normal_codebook
from .functional import Tables, codebook_tables


@torch.compiler.assume_constant_result
def _gated_tables(name: str, bits: int, device: torch.device, acc: torch.dtype) -> Tables:
    return default_gated_codebook(name, bits).tensors(device, acc)


@torch.compiler.assume_constant_result
def _normal_tables(bits: int, device: torch.device, acc: torch.dtype) -> Tables:
    return _cached_normal_tables(bits, device, acc)


@functools.cache
@ordinary_tensors()
def _cached_normal_tables(bits: int, device: torch.device, acc: torch.dtype) -> Tables:
    borders, codes, levels = normal_codebook(bits).tensors(device, acc)
    return borders, codes, levels, levels.clone()  # Dynamo refuses one tensor in two arguments


def gated_tables(name: str, keep: str, bits: int, device: torch.device, acc: torch.dtype) -> Tables:
    """(borders, codes, levels, values) of the default code for a gated unit."""
    if keep == "up":
        return _gated_tables(name, bits, device, acc)
    return _normal_tables(bits, device, acc)


def apply_gated(
    name: str, gate: Tensor, up: Tensor, tables: Tables, keep: str, bits: int, backend: str
) -> Tensor:
    """A gated unit with explicit device tables and a resolved backend."""
    if backend == "reference":
        return reference.gated(gate, up, name, keep, *tables)
    refuse_tangents(NO_FORWARD_MODE, gate, up)
    borders, codes, levels, values = tables
    if not wants_gradient(gate, up):
        return ops.fewbit_gated_fwd(gate, up, borders, codes, name, 0, keep, backend)[0]
    return FewBitGated.apply(gate, up, borders, codes, levels, values, name, keep, bits, backend)[0]


def gated_unit(
    name: str,
    gate: Tensor,
    up: Tensor,
    bits: int,
    codebook: GatedCodebook | None,
    keep: str,
    backend: str | None,
) -> Tensor:
    _checks.floating_tensor("gate", gate)
    _checks.floating_tensor("up", up)
    _checks.same_as("up", up, "gate", gate)
    _checks.integer_between("bits", bits, 1, 4)
    _checks.one_of("keep", keep, ("up", "gate"))
    if keep == "gate" and gate.dim() == 0:
        raise _checks.fail_value("gate", 'at least one dimension with keep="gate"', "0 dimensions")
    if up is gate:
        up = up.view_as(up)  # Dynamo refuses one tensor in two arguments
    chosen = _backends.resolve("fewbit", backend, gate)
    acc = accumulator(gate.dtype)
    if codebook is None:
        tables = gated_tables(name, keep, bits, gate.device, acc)
    else:
        if not isinstance(codebook, GatedCodebook):
            raise _checks.fail_type("codebook", "a sublimate.fewbit.GatedCodebook", codebook)
        if keep != "up":
            raise _checks.fail_value("codebook", 'None with keep="gate"', "a GatedCodebook")
        if codebook.bits != bits or codebook.name != name:
            expected = f"a codebook of {name} with bits={bits}"
            raise _checks.fail_value("codebook", expected, f"{codebook.name}, {codebook.bits} bits")
        tables = codebook_tables(codebook, gate.device, acc)
    return apply_gated(name, gate, up, tables, keep, bits, chosen)


def swiglu(
    gate: Tensor,
    up: Tensor,
    *,
    bits: int = 3,
    codebook: GatedCodebook | None = None,
    keep: str = "up",
    backend: str | None = None,
) -> Tensor:
    """silu(gate) * up keeping one branch and a b-bit code of the other.

    Args:
        gate, up: same shape, dtype and device; any strides (copied where not contiguous).
        bits: 1 to 4.
        codebook: of ``fit_gated_codebook``; with keep="up" only.
        keep: "up" keeps up and codes gate: dgate = dy up levels[code], dup = dy values[code].
            "gate" keeps gate and codes up divided by its row's RMS: dup = dy silu(gate) is exact,
            dgate = dy silu'(gate) decoded(up). Rows run over the last dimension.
        backend: as in the module's docstring.

    Returns:
        silu(gate) * up, contiguous, computed in fp32 and rounded once.

    Bytes kept per pair of 16-bit elements: 2 + bits / 8 (plus 4 per row with keep="gate"), against
    6 for eager. Gradient errors: see this folder's README.

    Raises:
        TypeError, ValueError, BackendUnavailable: as in the module's docstring.
    """
    return gated_unit("silu", gate, up, bits, codebook, keep, backend)


def geglu(
    gate: Tensor,
    up: Tensor,
    *,
    approximate: str = "none",
    bits: int = 3,
    codebook: GatedCodebook | None = None,
    keep: str = "up",
    backend: str | None = None,
) -> Tensor:
    """gelu(gate) * up keeping one branch and a b-bit code of the other; otherwise as ``swiglu``.

    Args:
        approximate: "none" or "tanh", as in torch.nn.functional.gelu.
    """
    _checks.one_of("approximate", approximate, ("none", "tanh"))
    name = "gelu" if approximate == "none" else "gelu_tanh"
    return gated_unit(name, gate, up, bits, codebook, keep, backend)
