"""Drop-in: sketched linear layers for those of an existing model."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .. import _backends, _checks, _convert
from . import arguments, seeds
from .modules import Conv2d, Group, Linear, Sketched, not_one_by_one

#: Names of children that read the same tensor, in Hugging Face's attention and gated MLP blocks.
SHARED = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
_GROUPS = "_sublimate_shared_inputs"  # in __dict__ of a parent: its groups


@dataclass
class Report(_convert.Report):
    """What ``convert`` did: prints as a table.

    Attributes:
        replaced: places that were replaced, in model order.
        skipped: (place, reason) of linear layers that stay as they are.
        shared: names of layers that keep one sketch where they read one tensor.
    """

    shared: list[tuple[str, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.shared:
            lines.append(f"shared inputs {len(self.shared)}")
            lines += [f"  {', '.join(names)}" for names in self.shared]
        return "\n".join(lines)


def _patterns(argument: str, value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else (value,)
    if not isinstance(value, Iterable) or isinstance(value, Tensor):
        raise _checks.fail_type(argument, "a pattern, several of them, or None", value)
    found = tuple(value)
    for pattern in found:
        if not isinstance(pattern, str):
            raise _checks.fail_type(argument, "patterns that are str", pattern)
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _obstacle(old: nn.Module) -> str | None:
    """Why a module that holds a linear map is not replaced; None if it is, or holds none."""
    if isinstance(old, Sketched) or type(old) is nn.Linear:
        return None
    if isinstance(old, nn.Linear):
        return f"{type(old).__name__} may use its weight in ways of its own"
    if type(old) is nn.Conv2d:
        why = not_one_by_one(old)
        return None if why is None else f"{why[0]} {why[2]}: only 1 x 1 without padding or groups"
    if isinstance(old, nn.MultiheadAttention):
        return "torch.nn.MultiheadAttention uses its projections as parameters, not as modules"
    if type(old).__name__ == "Conv1D" and type(old).__module__.startswith("transformers."):
        return "transformers' Conv1D stores its weight transposed"
    return None


def convert(
    model: nn.Module,
    ratio: float | Mapping[str, float] = 0.2,
    sketch: str = "srht",
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    rank: Any = None,
    backend: str | None = None,
) -> Report:
    """Replaces torch.nn.Linear and 1 x 1 torch.nn.Conv2d by sketched layers, in place.

    The layers keep the very parameters, so an optimizer made before stays right. Children of one
    parent that Hugging Face's attention and gated MLP blocks call with the same tensor (``SHARED``)
    keep one sketch of it. Subclasses of torch.nn.Linear stay as they are; the report names them.

    Args:
        model: any module; the model itself is not replaced, its descendants are.
        ratio: in (0, 1]; or {name: ratio}, as ``choose_ratio`` gives, and then only those named.
        sketch: as in ``functional.linear``.
        include: patterns (``*`` and ``?``) of dotted names to replace; None: all.
        exclude: patterns of names to leave.
        seed: base seed of all layers; their numbers follow model order.
        rank, backend: as in ``Linear``.

    Returns:
        A report of what was replaced, shared and skipped; prints as a table.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged.
    """
    _checks.module("model", model)
    ratios = dict(ratio) if isinstance(ratio, Mapping) else None
    for value in [ratio] if ratios is None else ratios.values():
        arguments.check_options(value, sketch)
    chosen, left = _patterns("include", include), _patterns("exclude", exclude)
    _checks.integer_between("seed", seed, 0, 2**61 - 1)
    if backend is not None:
        _backends._validated(backend, "backend")
    place = seeds.resolve_rank(rank)
    modules = dict(model.named_modules())
    unknown = [] if ratios is None else [name for name in ratios if name not in modules]
    if unknown:
        raise _checks.fail_value("ratio", "names of modules of the model", unknown[0])
    count = 0

    def wanted(name: str) -> bool:
        if ratios is not None and name not in ratios:
            return False
        return (chosen is None or _matches(name, chosen)) and not (left and _matches(name, left))

    def make(name: str, old: Any) -> nn.Module | None:
        nonlocal count
        if not isinstance(old, nn.Module) or not wanted(name) or _obstacle(old) is not None:
            return None
        options: dict[str, Any] = {
            "ratio": ratios[name] if ratios is not None else ratio,
            "sketch": sketch, "seed": seed, "layer": count, "rank": place, "backend": backend,
        }  # fmt: skip
        if type(old) is nn.Linear:
            count += 1
            return Linear.of(old, **options)
        if type(old) is nn.Conv2d:
            count += 1
            return Conv2d.of(old, **options)
        return None

    report = Report(_convert.replace(model, make))
    for name, old in modules.items():
        why = _obstacle(old) if wanted(name) else None
        if why is not None:
            report.skipped.append((name, why))
    if type(model) in (nn.Linear, nn.Conv2d) and wanted(""):
        report.skipped.append(("", "the model itself is a layer; replace it where it is held"))
    report.shared = _share(model, {r.name for r in report.replaced})
    return report


def _share(model: nn.Module, replaced: set[str]) -> list[tuple[str, ...]]:
    """Makes the groups of ``SHARED`` among the layers just replaced."""
    found = []
    for prefix, parent in model.named_modules():
        for names in SHARED:
            full = [f"{prefix}.{name}" if prefix else name for name in names]
            members = [
                (name, parent._modules[child])
                for name, child in zip(full, names, strict=True)
                if name in replaced and child in parent._modules
            ]
            layers = [layer for _, layer in members if isinstance(layer, Linear)]
            if len(layers) < 2 or len({layer.in_features for layer in layers}) > 1:
                continue
            parent.__dict__.setdefault(_GROUPS, []).append(Group(parent, list(layers)))
            found.append(tuple(name for name, _ in members))
    return found


def disband(model: nn.Module, report: _convert.Report) -> None:
    """Takes back the groups that one ``convert`` made."""
    if not isinstance(report, Report):
        return
    for names in report.shared:
        parent = model.get_submodule(names[0].rpartition(".")[0])
        groups = parent.__dict__.get(_GROUPS, [])
        members = [model.get_submodule(name) for name in names]
        for group in [g for g in groups if g.members == members]:
            group.disband()
            groups.remove(group)


def restore(model: nn.Module) -> int:
    """Undoes ``convert``: puts the original layers back; returns how many places.

    The parameters are the same objects throughout, so what was trained stays trained.

    Raises:
        TypeError: not a torch.nn.Module.
    """
    _checks.module("model", model)
    for parent in model.modules():
        for group in parent.__dict__.pop(_GROUPS, ()):
            group.disband()
    for layer in model.modules():
        if isinstance(layer, Sketched) and _convert._ORIGINAL in layer.__dict__:
            (old,) = layer.__dict__[_convert._ORIGINAL]
            old.weight, old.bias = layer.weight, layer.bias
    return _convert.restore(model, (Linear, Conv2d))
