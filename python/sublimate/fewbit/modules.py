"""Modules with torch.nn's signatures plus ``bits``; the codebook is buffers of the state_dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backends, _checks
from . import functional, gated, reference
from .codebook import Codebook, GatedCodebook, default_codebook, default_gated_codebook

_TABLE = ("borders", "codes", "levels")


class FewBitActivation(nn.Module):
    """Base of the smooth activations: y = f(x), dx = levels[code(x)] * dy.

    Buffers ``borders`` (m,), ``codes`` (m + 1,), ``levels`` (2**bits,) hold the codebook; they keep
    their own dtype under ``module.to(dtype)`` and may be replaced by a checkpoint with another m. A
    checkpoint without them (of the torch.nn module) loads too and leaves the codebook as it is.

    Args:
        name: function name in ``functions.FUNCTIONS``.
        params: its parameters.
        bits: 1 to 4.
        codebook: None for the one optimal for N(0, 1).
        stochastic: unbiased codes; each forward in training draws a seed from torch's generator.
        backend: as in ``functional``.
    """

    borders: Tensor
    codes: Tensor
    levels: Tensor
    _assigned: dict[str, Tensor]

    def __init__(
        self,
        name: str,
        params: tuple[float, ...] = (),
        *,
        bits: int = 3,
        codebook: Codebook | None = None,
        stochastic: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        probe = torch.zeros((), dtype=torch.float32)
        functional._check_common(probe, bits, codebook, stochastic, None)
        for (argument, _), value in zip(reference.FUNCTIONS[name].params, params, strict=True):
            _checks.number(argument, value)
        if backend is not None:
            _backends._validated(backend, "backend")
        if codebook is None:
            codebook = default_codebook(name, bits, params, "stochastic" if stochastic else "auto")
        elif stochastic:
            functional._covers(codebook)
        self.name, self.params, self.bits = name, tuple(float(p) for p in params), bits
        self.stochastic, self.backend = stochastic, backend
        for buffer in _TABLE:
            self.register_buffer(buffer, torch.empty(0))
        self.codebook = codebook

    @property
    def codebook(self) -> Codebook:
        """The codebook in the buffers; assigning one of the same bits replaces it in place."""
        return Codebook(
            borders=self.borders.detach().cpu().double(),
            codes=self.codes.detach().cpu().long(),
            levels=self.levels.detach().cpu().double(),
            bits=self.bits,
            mse=self._mse,
            mode="stochastic" if self.stochastic else "value",
            name=self.name,
            params=self.params,
        )

    @codebook.setter
    def codebook(self, codebook: Codebook) -> None:
        functional._check_common(torch.zeros(()), self.bits, codebook, self.stochastic, None)
        if self.stochastic:
            functional._covers(codebook)
        tables = codebook.tensors("cpu", torch.float32)
        self._assigned = dict(zip(_TABLE, tables, strict=True))  # survives a stay on "meta"
        for buffer, table in self._assigned.items():
            setattr(self, buffer, table.to(self.levels.device, copy=True))
        self._mse = codebook.mse

    def forward(self, x: Tensor) -> Tensor:
        _checks.floating_tensor("x", x)
        if x.device != self.levels.device:
            raise _checks.fail_value(
                "x", f"a tensor on the module's {self.levels.device}", x.device
            )
        functional.check_parameters(self.name, self.params, x)
        tables: tuple[Tensor, ...] = (self.borders, self.codes, self.levels)
        if x.dtype == torch.float64:
            tables = (self.borders.double(), self.codes, self.levels.double())
        chosen = _backends.resolve("fewbit", self.backend, x)
        draw = self.stochastic and torch.is_grad_enabled() and x.requires_grad
        seed = functional._seed_tensor(None, x) if draw else None
        return functional.apply_tables(self.name, x, self.params, tables, self.bits, seed, chosen)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FewBitActivation:
        before = {buffer: getattr(self, buffer) for buffer in _TABLE}
        super()._apply(fn, recurse)
        for buffer, old in before.items():
            # Tables only move: no cast, and never the garbage of to_empty.
            moved = getattr(self, buffer)
            if old.is_meta and not moved.is_meta:
                old = self._assigned[buffer]
            setattr(self, buffer, old.to(moved.device))
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        present = [buffer for buffer in _TABLE if prefix + buffer in state_dict]
        if not present:
            return
        errors = arguments[-1]
        if len(present) == len(_TABLE):
            try:
                # The constructor checks lengths, order, range and finiteness.
                Codebook(
                    borders=state_dict[prefix + "borders"].detach().cpu().double(),
                    codes=state_dict[prefix + "codes"].detach().cpu().long(),
                    levels=state_dict[prefix + "levels"].detach().cpu().double(),
                    bits=self.bits,
                    mse=0.0,
                    mode="value",
                    name=self.name,
                    params=self.params,
                )
            except (TypeError, ValueError) as error:
                errors.append(f"{prefix}*: not a codebook of {self.bits} bits: {error}")
                return
            for buffer in _TABLE:
                saved = state_dict[prefix + buffer]
                setattr(self, buffer, getattr(self, buffer).new_empty(saved.shape))
            self._mse = float("nan")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        names = [argument for argument, _ in reference.FUNCTIONS[self.name].params]
        shown = [f"{n}={v:g}" for n, v in zip(names, self.params, strict=True)]
        if self.name == "gelu_tanh":
            shown.append("approximate='tanh'")
        shown.append(f"bits={self.bits}")
        if self.stochastic:
            shown.append("stochastic=True")
        return ", ".join(shown)


class GELU(FewBitActivation):
    """torch.nn.GELU keeping ``bits`` bits per element for backward."""

    def __init__(self, approximate: str = "none", **options: Any) -> None:
        _checks.one_of("approximate", approximate, ("none", "tanh"))
        super().__init__("gelu" if approximate == "none" else "gelu_tanh", **options)
        self.approximate = approximate


# `inplace` is taken for torch.nn's signature. It changes nothing: the input is not kept for
# backward in any case, and these modules never overwrite it.


class SiLU(FewBitActivation):
    """torch.nn.SiLU keeping ``bits`` bits per element for backward."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__("silu", **options)


class Sigmoid(FewBitActivation):
    """torch.nn.Sigmoid keeping ``bits`` bits per element for backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__("sigmoid", **options)


class Tanh(FewBitActivation):
    """torch.nn.Tanh keeping ``bits`` bits per element for backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__("tanh", **options)


class ELU(FewBitActivation):
    """torch.nn.ELU keeping ``bits`` bits per element for backward."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False, **options: Any) -> None:
        super().__init__("elu", (alpha,), **options)


class CELU(FewBitActivation):
    """torch.nn.CELU keeping ``bits`` bits per element for backward."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False, **options: Any) -> None:
        _checks.number("alpha", alpha)
        if alpha == 0:
            raise _checks.fail_value("alpha", "a number other than 0", alpha)
        super().__init__("celu", (alpha,), **options)


class SELU(FewBitActivation):
    """torch.nn.SELU keeping ``bits`` bits per element for backward."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__("selu", **options)


class Softplus(FewBitActivation):
    """torch.nn.Softplus keeping ``bits`` bits per element for backward."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0, **options: Any) -> None:
        _checks.number("beta", beta)
        if beta == 0:
            raise _checks.fail_value("beta", "a number other than 0", beta)
        super().__init__("softplus", (beta, threshold), **options)


class Mish(FewBitActivation):
    """torch.nn.Mish keeping ``bits`` bits per element for backward."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__("mish", **options)


class Hardswish(FewBitActivation):
    """torch.nn.Hardswish keeping ``bits`` bits per element for backward."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__("hardswish", **options)


class LogSigmoid(FewBitActivation):
    """torch.nn.LogSigmoid keeping ``bits`` bits per element for backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__("logsigmoid", **options)


class Softsign(FewBitActivation):
    """torch.nn.Softsign keeping ``bits`` bits per element for backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__("softsign", **options)


class Tanhshrink(FewBitActivation):
    """torch.nn.Tanhshrink keeping ``bits`` bits per element for backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__("tanhshrink", **options)


class ExactActivation(nn.Module):
    """Base of the activations whose f' takes two values: one bit, exact gradient, no buffers."""

    def __init__(
        self,
        call: Callable[..., Tensor],
        params: dict[str, float],
        bits: int = 1,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if backend is not None:
            _backends._validated(backend, "backend")
        self.bits, self.backend = bits, backend
        self._call, self._params = call, params
        # Bad parameters are refused here rather than at the first forward.
        call(torch.zeros(0), **params, bits=bits, backend="reference")

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, **self._params, bits=self.bits, backend=self.backend)

    def extra_repr(self) -> str:
        return ", ".join([f"{k}={v:g}" for k, v in self._params.items()] + [f"bits={self.bits}"])


class ReLU(ExactActivation):
    """torch.nn.ReLU keeping one bit per element."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__(functional.relu, {}, **options)


class ReLU6(ExactActivation):
    """torch.nn.ReLU6 keeping one bit per element."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__(functional.relu6, {}, **options)


class LeakyReLU(ExactActivation):
    """torch.nn.LeakyReLU keeping one bit per element."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False, **options: Any) -> None:
        super().__init__(functional.leaky_relu, {"negative_slope": negative_slope}, **options)


class Threshold(ExactActivation):
    """torch.nn.Threshold keeping one bit per element."""

    def __init__(
        self, threshold: float, value: float, inplace: bool = False, **options: Any
    ) -> None:
        params = {"threshold": threshold, "value": value}
        super().__init__(functional.threshold, params, **options)


class Hardtanh(ExactActivation):
    """torch.nn.Hardtanh keeping one bit per element."""

    def __init__(
        self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, **options: Any
    ) -> None:
        params = {"min_val": min_val, "max_val": max_val}
        super().__init__(functional.hardtanh, params, **options)


class Hardsigmoid(ExactActivation):
    """torch.nn.Hardsigmoid keeping one bit per element."""

    def __init__(self, inplace: bool = False, **options: Any) -> None:
        super().__init__(functional.hardsigmoid, {}, **options)


class Hardshrink(ExactActivation):
    """torch.nn.Hardshrink keeping one bit per element."""

    def __init__(self, lambd: float = 0.5, **options: Any) -> None:
        super().__init__(functional.hardshrink, {"lambd": lambd}, **options)


class Softshrink(ExactActivation):
    """torch.nn.Softshrink keeping one bit per element."""

    def __init__(self, lambd: float = 0.5, **options: Any) -> None:
        super().__init__(functional.softshrink, {"lambd": lambd}, **options)


class _Gated(nn.Module):
    def __init__(
        self,
        name: str,
        bits: int = 3,
        codebook: GatedCodebook | None = None,
        keep: str = "up",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if backend is not None:
            _backends._validated(backend, "backend")
        self.name, self.bits, self.keep, self.backend = name, bits, keep, backend
        # A call on nothing refuses bad arguments now rather than at the first forward.
        probe = torch.zeros(0, device="cpu")
        gated.gated_unit(name, probe, probe, bits, codebook, keep, "reference")
        if codebook is None and keep == "up":
            codebook = default_gated_codebook(name, bits)
        self.codebook = codebook

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return gated.gated_unit(
            self.name, gate, up, self.bits, self.codebook, self.keep, self.backend
        )

    def extra_repr(self) -> str:
        return f"bits={self.bits}, keep={self.keep!r}"


class SwiGLU(_Gated):
    """silu(gate) * up keeping one branch and a code of the other; see ``functional.swiglu``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("silu", **options)


class GEGLU(_Gated):
    """gelu(gate) * up keeping one branch and a code of the other; see ``functional.geglu``."""

    def __init__(self, approximate: str = "none", **options: Any) -> None:
        _checks.one_of("approximate", approximate, ("none", "tanh"))
        super().__init__("gelu" if approximate == "none" else "gelu_tanh", **options)
