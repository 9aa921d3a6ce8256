"""Drop-in: few-bit activations for the activation modules of an existing model."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import _checks, _convert
from . import modules, reference
from .codebook import fit_codebook

Maker = Callable[[Any, int], nn.Module]

#: torch.nn class -> our module with the same parameters.
_MODULES: dict[type[nn.Module], Maker] = {
    nn.GELU: lambda m, bits: modules.GELU(m.approximate, bits=bits),
    nn.SiLU: lambda m, bits: modules.SiLU(bits=bits),
    nn.Sigmoid: lambda m, bits: modules.Sigmoid(bits=bits),
    nn.Tanh: lambda m, bits: modules.Tanh(bits=bits),
    nn.ELU: lambda m, bits: modules.ELU(m.alpha, bits=bits),
    nn.CELU: lambda m, bits: modules.CELU(m.alpha, bits=bits),
    nn.SELU: lambda m, bits: modules.SELU(bits=bits),
    nn.Softplus: lambda m, bits: modules.Softplus(m.beta, m.threshold, bits=bits),
    nn.Mish: lambda m, bits: modules.Mish(bits=bits),
    nn.Hardswish: lambda m, bits: modules.Hardswish(bits=bits),
    nn.LogSigmoid: lambda m, bits: modules.LogSigmoid(bits=bits),
    nn.Softsign: lambda m, bits: modules.Softsign(bits=bits),
    nn.Tanhshrink: lambda m, bits: modules.Tanhshrink(bits=bits),
    nn.ReLU: lambda m, bits: modules.ReLU(),
    nn.ReLU6: lambda m, bits: modules.ReLU6(),
    nn.LeakyReLU: lambda m, bits: modules.LeakyReLU(m.negative_slope),
    nn.Threshold: lambda m, bits: modules.Threshold(m.threshold, m.value),
    nn.Hardtanh: lambda m, bits: modules.Hardtanh(m.min_val, m.max_val),
    nn.Hardsigmoid: lambda m, bits: modules.Hardsigmoid(),
    nn.Hardshrink: lambda m, bits: modules.Hardshrink(m.lambd),
    nn.Softshrink: lambda m, bits: modules.Softshrink(m.lambd),
}

#: Activation classes of the transformers library, by name, so that it need not be installed.
_TRANSFORMERS: dict[str, Maker] = {
    "GELUActivation": lambda m, bits: modules.GELU(bits=bits),
    "NewGELUActivation": lambda m, bits: modules.GELU("tanh", bits=bits),
    "FastGELUActivation": lambda m, bits: modules.GELU("tanh", bits=bits),
    "AccurateGELUActivation": lambda m, bits: modules.GELU("tanh", bits=bits),
    "PytorchGELUTanh": lambda m, bits: modules.GELU("tanh", bits=bits),
    "GELUTanh": lambda m, bits: modules.GELU("tanh", bits=bits),
    "SiLUActivation": lambda m, bits: modules.SiLU(bits=bits),
    "MishActivation": lambda m, bits: modules.Mish(bits=bits),
}

#: Functions kept as attributes, as torch.nn.TransformerEncoderLayer keeps its activation.
_FUNCTIONS: dict[Any, Maker] = {
    F.gelu: lambda _, bits: modules.GELU(bits=bits),
    F.silu: lambda _, bits: modules.SiLU(bits=bits),
    F.relu: lambda _, bits: modules.ReLU(),
    F.elu: lambda _, bits: modules.ELU(bits=bits),
    F.mish: lambda _, bits: modules.Mish(bits=bits),
    F.leaky_relu: lambda _, bits: modules.LeakyReLU(),
    torch.relu: lambda _, bits: modules.ReLU(),
    torch.sigmoid: lambda _, bits: modules.Sigmoid(bits=bits),
    torch.tanh: lambda _, bits: modules.Tanh(bits=bits),
}

#: Names under which an activation can be called in a forward method.
_CALLS = {n for n in reference.FUNCTIONS if n not in ("gelu_tanh", "threshold")} | {
    n + "_" for n in ("relu", "sigmoid", "tanh", "elu", "celu", "selu", "leaky_relu", "hardtanh")
}

CONVERTED = (modules.FewBitActivation, modules.ExactActivation)


def _maker(old: Any) -> Maker | None:
    if isinstance(old, nn.Module):
        if type(old).__module__.startswith("transformers."):
            return _TRANSFORMERS.get(type(old).__name__)
        return _MODULES.get(type(old))
    try:
        return _FUNCTIONS.get(old)
    except TypeError:  # unhashable callable
        return None


def _names_called(code: types.CodeType) -> set[str]:
    """Global and attribute names a code object uses, nested functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_called(constant)
    return names


def _functional_calls(model: nn.Module) -> list[tuple[str, str]]:
    """Activations named in the code of forward methods: found in the bytecode, not by running."""
    found = []
    for name, module in model.named_modules():
        home = type(module).__module__
        if home.startswith(("torch.nn.modules.activation", "sublimate.")):
            continue
        if home.startswith("transformers.activations"):
            if type(module).__name__ not in _TRANSFORMERS:
                found.append((name, f"{type(module).__name__} has no few-bit form"))
            continue
        code = getattr(type(module).forward, "__code__", None)
        calls = sorted(_names_called(code) & _CALLS) if code is not None else []
        if calls and not home.startswith("torch.nn.modules"):
            shown = ", ".join(calls)
            found.append((name, f"forward of {type(module).__name__} names {shown}: not a module"))
    return found


class _Watch(TorchFunctionMode):
    """Records activation functions called while batches run, by the module that was running."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running, self.seen = running, dict[tuple[str, str], None]()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name in _CALLS:
            self.seen[self.running[-1], name] = None
        return func(*args, **(kwargs or {}))


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, dict):
        model(**batch)
    elif isinstance(batch, (list, tuple)):
        model(*batch)
    else:
        raise _checks.fail_type("calibrate", "batches that are tensors, tuples or dicts", batch)


def _calibrate(model: nn.Module, batches: Iterable[Any]) -> list[tuple[str, str]]:
    """Fits the codebook of each smooth activation to the inputs it sees; lists functional calls."""
    samples: dict[modules.FewBitActivation, list[Tensor]] = {}
    running, handles = [""], []

    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            running.append(name)
            if isinstance(module, modules.FewBitActivation):
                flat = args[0].detach().flatten()
                step = max(1, flat.numel() // 16384)
                samples.setdefault(module, []).append(flat[::step].float().cpu())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))

    training = {m: m.training for m in model.modules()}
    watch = _Watch(running)
    try:
        model.eval()
        with torch.no_grad(), watch:
            for batch in batches:
                _run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    fitted = {
        module: fit_codebook(
            module.name,
            module.bits,
            mode="stochastic" if module.stochastic else "value",
            samples=torch.cat(parts),
            params=module.params,
        )
        for module, parts in samples.items()
    }
    for module, codebook in fitted.items():  # once nothing can fail any more
        module.codebook = codebook
    owners = dict(model.named_modules())
    return [
        (name, f"calls {call} while running: not a module")
        for name, call in watch.seen
        if not isinstance(owners[name], CONVERTED)
    ]


def convert(
    model: nn.Module, bits: int = 3, calibrate: Iterable[Any] | None = None
) -> _convert.Report:
    """Replaces activation modules by few-bit ones, in place.

    Replaced: torch.nn's activations this family has, those of the transformers library, and
    functions held as attributes (torch.nn.TransformerEncoderLayer). Activations called inside a
    forward method cannot be replaced from outside; the report names them.

    Args:
        model: any module; the model itself is not replaced, its descendants are.
        bits: 1 to 4, for the smooth functions; two-valued derivatives always take one exact bit.
        calibrate: batches (a tensor, tuple of arguments or dict of keywords each) run through the
            model in eval mode; each layer's codebook is then fitted to the inputs it saw.

    Returns:
        A report of what was replaced and what was not; prints as a table.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged.
    """
    _checks.module("model", model)
    _checks.integer_between("bits", bits, 1, 4)
    if calibrate is not None and (
        isinstance(calibrate, Tensor) or not hasattr(calibrate, "__iter__")
    ):
        raise _checks.fail_type("calibrate", "an iterable of batches", calibrate)

    def make(name: str, old: Any) -> nn.Module | None:
        maker = _maker(old)
        if maker is None:
            return None
        new = maker(old, bits)
        anchor = next(model.parameters(), None)
        return new if anchor is None else new.to(anchor.device)

    report = _convert.Report(_convert.replace(model, make))
    if _maker(model) is not None:
        report.skipped.append(
            ("", "the model itself is an activation; replace it where it is held")
        )
    report.skipped += _functional_calls(model)
    if calibrate is not None:
        try:
            watched = _calibrate(model, calibrate)
        except BaseException:
            _convert.undo(model, report.replaced)
            raise
        named = {name for name, _ in report.skipped}
        report.skipped += [(name, why) for name, why in watched if name not in named]
    return report


def restore(model: nn.Module) -> int:
    """Undoes ``convert``: puts the original activations back; returns how many.

    Raises:
        TypeError: not a torch.nn.Module.
    """
    return _convert.restore(model, CONVERTED)
