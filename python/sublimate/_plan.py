"""Which layers of a model keep what for backward, why, and what each choice here would save.

The families are found by name when a plan is made: this module stands below them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import _convert, _trace

CHOICES = ("few-bit", "sketch", "both")


@dataclass(frozen=True)
class LayerPlan:
    """One linear layer or activation that keeps something for backward.

    Attributes:
        name: dotted name. kind: "linear" or "activation".
        kept: bytes of the tensors it keeps, also where others keep them.
        neighbours: other modules that keep one of these tensors, so that it stays unless they
            change too.
        few_bit, sketch: bytes saved if this layer alone were converted, negative if that costs;
            None where the choice does not exist. Layers that read one input change together.
    """

    name: str
    kind: str
    kept: int
    neighbours: tuple[str, ...]
    few_bit: int | None
    sketch: int | None


@dataclass
class Plan:
    """What ``plan`` found; prints as a table.

    Attributes:
        total: bytes kept for backward now.
        layers: one ``LayerPlan`` for each layer that has a choice, in the order of running.
        predicted: choice -> bytes kept if every layer took it: "few-bit", "sketch", "both".
        measured: the same from converting the model, running it and converting it back.
    """

    total: int
    layers: list[LayerPlan]
    predicted: dict[str, int]
    measured: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        names = "kept", "few-bit saves", "sketch saves"
        head = f"{'layer':44s} " + " ".join(f"{name:>13s}" for name in names)
        lines = [f"{head}  also kept by"]
        for p in self.layers:
            few, sketch = ("" if v is None else f"{v:,d}" for v in (p.few_bit, p.sketch))
            others = ", ".join(p.neighbours)
            lines.append(f"{p.name:44s} {p.kept:13,d} {few:>13s} {sketch:>13s}  {others}")
        lines.append(f"kept now {self.total:,d}")
        for choice in CHOICES:
            predicted = self.predicted[choice]
            shown = f"{predicted:,d} ({predicted / max(1, self.total) - 1:+.1%})"
            if choice in self.measured:
                shown += f", measured {self.measured[choice]:,d}"
            lines.append(f"{choice}: predicted {shown}")
        return "\n".join(lines)


class _Model:
    """The traced model: which storages each module keeps, and what replacing it would do."""

    def __init__(
        self, model: nn.Module, trace: _trace.Trace, bits: int, ratio: float, sketch: str
    ) -> None:
        self.trace, self.bits, self.ratio, self.sketch = trace, bits, ratio, sketch
        few_bit = importlib.import_module("sublimate.fewbit.convert")
        linear = importlib.import_module("sublimate.randomized_linear.convert")
        self.reference = importlib.import_module("sublimate.randomized_linear.reference")
        modules = dict(model.named_modules())
        self.linears: dict[str, int] = {}  # name -> width of the input
        self.activations: dict[str, int] = {}  # name -> bits of a code
        for name in trace.order:
            module = modules[name]
            if type(module) is nn.Linear and name:
                self.linears[name] = module.in_features
            elif name and few_bit._maker(module) is not None:
                exact = hasattr(few_bit._maker(module)(module, bits), "_params")
                self.activations[name] = 1 if exact else bits
        self.groups: dict[str, str] = {}
        for name in self.linears:
            prefix, _, child = name.rpartition(".")
            for names in linear.SHARED:
                if child in names:
                    self.groups[name] = f"{prefix}.{names}"

    def companions(self, name: str) -> set[str]:
        """The layer and those that would share its sketch."""
        mine = self.trace.storages_of(name)
        group = self.groups.get(name)
        same = {n for n in self.linears if group and self.groups.get(n) == group}
        return {name} | {n for n in same if self.trace.storages_of(n) == mine}

    def after(self, changed: set[str]) -> int:
        """Bytes kept if these layers were converted."""
        total = 0
        for storage in self.trace.storages.values():
            if storage.owners - changed:
                total += storage.nbytes
        seen = set()
        for name in changed & self.linears.keys():
            for address, numel, itemsize in self.trace.saved_by(name):
                key = (address, self.groups.get(name, name))
                if key not in seen:
                    seen.add(key)
                    width = self.linears[name]
                    k = self.reference.rows_kept(numel // max(1, width), self.ratio)
                    draws = 4 * k if self.sketch in self.reference.SAMPLERS else 8
                    total += k * width * itemsize + draws
        for name in changed & self.activations.keys():
            for _, numel, _ in self.trace.saved_by(name):
                total += (numel + 31) // 32 * self.activations[name] * 4
        return total


def plan(
    model: nn.Module,
    *inputs: Any,
    bits: int = 3,
    ratio: float = 0.2,
    sketch: str = "srht",
    measure: bool = True,
    **keywords: Any,
) -> Plan:
    """Runs the model forward, lists what its layers keep, and predicts what each choice would save.

    Args:
        model: run in its present mode; with ``measure``, converted and converted back in place.
        inputs, keywords: arguments of its forward.
        bits: of few-bit activations (``fewbit.convert``).
        ratio, sketch: of sketched linear layers (``randomized_linear.convert``).
        measure: also run the three conversions; four forwards in place of one.

    Returns:
        A ``Plan``. Prediction covers torch.nn.Linear and the activations that ``fewbit.convert``
        knows. Tensors below a hundred bytes (seeds, tables) are counted like all others.

    Raises:
        TypeError, ValueError: a bad argument.
    """
    arguments = importlib.import_module("sublimate.randomized_linear.arguments")
    checks = importlib.import_module("sublimate._checks")
    if not isinstance(model, nn.Module):
        raise checks.fail_type("model", "a torch.nn.Module", model)
    checks.integer_between("bits", bits, 1, 4)
    checks.flags(measure=measure)
    arguments.check_options(ratio, sketch)
    trace = _trace.run(model, inputs, keywords)
    view = _Model(model, trace, bits, ratio, sketch)
    layers = []
    for name in [n for n in trace.order if n in view.linears or n in view.activations]:
        addresses = trace.storages_of(name)
        if not addresses:
            continue
        linear = name in view.linears
        together = view.companions(name) if linear else {name}
        owners = set().union(*(trace.storages[a].owners for a in addresses))
        saved = trace.total - view.after(together)
        layers.append(
            LayerPlan(
                name,
                "linear" if linear else "activation",
                sum(trace.storages[a].nbytes for a in addresses),
                tuple(sorted(owners - {name})),
                None if linear else saved,
                saved if linear else None,
            )
        )
    linears, activations = set(view.linears), set(view.activations)
    sets = dict(zip(CHOICES, (activations, linears, activations | linears), strict=True))
    found = Plan(trace.total, layers, {c: view.after(s) for c, s in sets.items()})
    if measure:
        found.measured = _measured(model, inputs, keywords, bits, ratio, sketch)
    return found


def _measured(
    model: nn.Module, inputs: Any, keywords: Any, bits: int, ratio: float, sketch: str
) -> dict[str, int]:
    """Bytes kept under each choice, by converting the model, which is left as it was."""
    few_bit = importlib.import_module("sublimate.fewbit.convert")
    linear = importlib.import_module("sublimate.randomized_linear.convert")

    def converted(*makers: Callable[[], Any]) -> int:
        reports: list[Any] = []
        try:
            for make in makers:
                reports.append(make())
            return _trace.run(model, inputs, keywords).total
        finally:
            for report in reversed(reports):
                linear.disband(model, report)
                _convert.undo(model, report.replaced)

    def to_few_bits() -> Any:
        return few_bit.convert(model, bits)

    def to_sketches() -> Any:
        return linear.convert(model, ratio, sketch, exclude=None)

    makers = (to_few_bits,), (to_sketches,), (to_few_bits, to_sketches)
    return {c: converted(*m) for c, m in zip(CHOICES, makers, strict=True)}
