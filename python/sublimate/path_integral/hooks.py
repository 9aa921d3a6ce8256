"""FullGrad and NormGrad: gradients read inside the model by hooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import fail_type, floating_tensor, one_of
from .arguments import Forward, as_tuple, fail_value
from .chunks import NO_PATH, frozen, modules_of
from .layers import eager, hooked
from .path import setup

NORM_KINDS = ("conv1x1", "conv3x3", "bias", "scaling")


@dataclass
class FullGradients:
    """A decomposition of the output.

    Attributes:
        input_part: x * gradient, like inputs (all parts float32 for a 16-bit model).
        bias_parts: module name -> what its constant part contributes at each place, [B, ...].
        output: F(x) [B].
        delta: sum of all parts less the output [B]; 0 where every operation that is not linear
            lies in a module that was seen.
    """

    input_part: Any
    bias_parts: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    delta: Tensor = field(default_factory=lambda: torch.empty(0))

    def map(self, size: tuple[int, int]) -> Tensor:
        """The saliency of Srinivas and Fleuret: |parts| scaled to [0, 1] each, summed over channels
        and resized, [B, H, W]."""
        _check_size(size)
        (x,) = as_tuple(self.input_part)
        total = _unit(x.abs().sum(1))
        for part in self.bias_parts.values():
            if part.dim() == 4:
                shown = _unit(part.abs()).sum(1, keepdim=True)
                shown = F.interpolate(shown, size, mode="bilinear", align_corners=False)
                total = total + shown[:, 0]
        return total


def _wide(t: Tensor) -> Tensor:
    """16-bit numbers in float32: squares of theirs may leave float16's range at both ends."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _check_size(size: Any) -> None:
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not pair or not all(isinstance(n, int) and not isinstance(n, bool) for n in size):
        raise fail_type("size", "two ints, height and width", size)
    if min(size) < 1 or max(size) >= 2**31:
        raise fail_value("size", "a height and a width >= 1", tuple(size))


def _unit(t: Tensor) -> Tensor:
    flat = t.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    shape = (-1,) + (1,) * (t.dim() - 1)
    return (t - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)


def _leaves(forward: Forward) -> dict[str, nn.Module]:
    """Modules without modules inside, by name."""
    found: dict[str, nn.Module] = {}
    for root in modules_of(forward):
        for name, module in root.named_modules():
            if not any(module.children()):
                found.setdefault(name or type(module).__name__, module)
    return found


def full_grad(
    forward: Forward,
    inputs: Any,
    target: Any = None,
    *,
    additional_forward_args: Any = None,
    create_graph: bool = False,
    backend: str | None = None,
) -> FullGradients:
    """Input gradient and bias gradients of every module: together they are the output.

    A module y = m(x) contributes gradient * (y - J x), its constant part at x: the bias of linear
    and convolution layers and of normalisation in eval mode, and for any other module (LayerNorm,
    GELU ...) what its tangent at x leaves. Nothing depends on the kinds of modules or the order of
    hooks.

    Args:
        forward: an nn.Module, or a callable from which its modules can be reached.
        backend: checked as everywhere; no kernel of ours is needed.
        The rest: as in ``integrated_gradients``, one target.

    Raises:
        ValueError: no module is found.

    Cost: one forward and backward, and a Jacobian-vector product for each module.
    Source: Srinivas and Fleuret, "Full-gradient representation for neural network visualization",
    2019.
    """
    forward = eager(forward)
    problem, _, single, _ = setup(
        forward, inputs, target, False, additional_forward_args, create_graph, backend
    )
    leaves = _leaves(forward)
    if not leaves:
        raise fail_value("forward", "a torch.nn.Module or a callable that holds one", forward)
    calls: list[tuple[str, nn.Module, tuple[Any, ...], Tensor]] = []
    names = {id(m): n for n, m in leaves.items()}

    def watch(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, Tensor) and out.requires_grad:
            out = out.view_as(out)  # its own node, whatever happens to it in place later
            calls.append((names[id(module)], module, given, out))
            return out
        return None

    with frozen(forward, not create_graph), torch.enable_grad():
        z = [x[None].to(s.points) for x, s in zip(problem.x, problem.layout, strict=True)]
        xs = [s.as_model_input(t) for s, t in zip(problem.layout, z, strict=True)]
        xs = [x if x.requires_grad else x.requires_grad_() for x in xs]
        with hooked(list(leaves.values()), lambda i: watch, False):
            output = forward(*xs, *problem.args)
        (picked,) = problem.target.pick(output, 1, problem.batch)
        if not picked.requires_grad:
            raise RuntimeError(NO_PATH)
        wanted = [*xs, *(c[3] for c in calls)]
        grads = torch.autograd.grad(
            picked.sum(), wanted, create_graph=create_graph, allow_unused=True
        )
    parts: dict[str, Tensor] = {}
    with torch.set_grad_enabled(create_graph):
        for (name, module, given, out), g in zip(calls, grads[len(xs) :], strict=True):
            if g is None:
                continue
            constant = _constant(module, given, out if create_graph else out.detach())
            part = _wide(g) * _wide(constant)
            if bool((part != 0).any()):
                parts[name] = parts[name] + part if name in parts else part
        inner = [
            _wide(torch.zeros_like(x) if g is None else x if create_graph else x.detach())
            * (1 if g is None else _wide(g))
            for x, g in zip(xs, grads, strict=False)
        ]
        total: Any = _wide(picked.detach()).new_zeros(problem.batch)
        for t in (*inner, *parts.values()):
            total = total + t.detach().reshape(problem.batch, -1).sum(1)
    value = _wide(picked.detach()).reshape(-1)
    return FullGradients(inner[0] if single else tuple(inner), parts, value, total - value)


def _constant(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    """y - J x of a module at its input x; hooks of the module do not run."""
    floating = [isinstance(t, Tensor) and t.is_floating_point() for t in given]
    kept = [t if torch.is_grad_enabled() or not isinstance(t, Tensor) else t.detach()
            for t in given]  # fmt: skip

    def call(*moving: Tensor) -> Tensor:
        values = iter(moving)
        arguments = [next(values) if f else t for f, t in zip(floating, kept, strict=True)]
        result: Tensor = module.forward(*arguments)
        return result

    x = tuple(t for f, t in zip(floating, kept, strict=True) if f)
    if not x:
        return out
    bias = getattr(module, "bias", None)
    if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if bias is None:
            return torch.zeros_like(out)
        shape = (-1,) if isinstance(module, nn.Linear) else (-1,) + (1,) * (out.dim() - 2)
        return bias.view(shape).expand_as(out)
    # J x as the derivative of u -> u' J: what the module's own backward knows, and no more.
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if recording else tuple(t.detach() for t in x)
        at = tuple(t if t.requires_grad else t.requires_grad_() for t in at)
        y = call(*at)
        u = torch.zeros_like(y, requires_grad=True)
        back = torch.autograd.grad(y, at, u, create_graph=True, allow_unused=True)
        pairs = [(b, t) for b, t in zip(back, at, strict=True) if b is not None and b.requires_grad]
        if not pairs:
            return out
        product = torch.autograd.grad(
            [b for b, _ in pairs], u, [t for _, t in pairs], create_graph=recording
        )[0]
    return out - product


# -------------------------------------------------------------------------------------- NormGrad


def norm_grad_maps(activation: Tensor, gradient: Tensor, kind: str) -> Tensor:
    """Norm at each place of the gradient of a virtual layer put behind an activation.

    Args:
        activation, gradient: [B, C, H, W], a layer's output and the gradient of the score.
        kind: "conv1x1": |x_u| |g_u|; "conv3x3": |patch around u| |g_u|; "bias": |g_u|; "scaling":
            |x_u * g_u|.

    Returns:
        [B, H, W], float32 for 16-bit values.

    Raises:
        ValueError: an unknown kind.
    """
    one_of("kind", kind, NORM_KINDS)
    for name, t in (("activation", activation), ("gradient", gradient)):
        floating_tensor(name, t)
        if t.dim() != 4 or t.shape != activation.shape:
            raise fail_value(name, "[B, C, H, W], activation and gradient alike", tuple(t.shape))
    activation, gradient = _wide(activation), _wide(gradient)
    norm = gradient.square().sum(1).sqrt()
    if kind == "bias":
        return norm
    if kind == "scaling":
        return (activation * gradient).square().sum(1).sqrt()
    power = activation.square().sum(1, keepdim=True)
    if kind == "conv3x3":
        power = F.avg_pool2d(power, 3, 1, 1, divisor_override=1)
    return power[:, 0].sqrt() * norm


def norm_grad(
    forward: Forward,
    inputs: Any,
    target: Any = None,
    *,
    layer: nn.Module | list[nn.Module],
    kind: str = "conv1x1",
    size: tuple[int, int] | None = None,
    additional_forward_args: Any = None,
    create_graph: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Saliency from the norm of the gradient of a virtual identity layer.

    Args:
        layer: whose output [B, C, H, W] is looked at. Several: their maps, resized to ``size`` (or
            to the largest) and scaled to a largest value of 1, are multiplied.
        kind: of the virtual layer, see ``norm_grad_maps``.
        The rest: as in ``integrated_gradients``, one target.

    Returns:
        [B, H, W].

    Source: Rebuffi, Fong, Ji and Vedaldi, "There and back again: revisiting backpropagation
    saliency methods", 2020.
    """
    one_of("kind", kind, NORM_KINDS)
    forward = eager(forward)
    layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
    if not layers:
        raise fail_value("layer", "at least one module", layer)
    for one in layers:
        if not isinstance(one, nn.Module):
            raise fail_type("layer", "a torch.nn.Module or a list of them", one)
    if size is not None:
        _check_size(size)
    problem, _, _, _ = setup(
        forward, inputs, target, False, additional_forward_args, create_graph, backend
    )
    seen: dict[int, Tensor] = {}

    def make(i: int) -> Any:
        def watch(module: nn.Module, given: Any, out: Any) -> Tensor:
            if not isinstance(out, Tensor) or out.dim() != 4:
                raise fail_value("layer", "one whose output is [B, C, H, W]", type(out).__name__)
            seen[i] = out.view_as(out)
            return seen[i]

        return watch

    with frozen(forward, not create_graph), torch.enable_grad():
        z = [x[None].to(s.points) for x, s in zip(problem.x, problem.layout, strict=True)]
        xs = [s.as_model_input(t) for s, t in zip(problem.layout, z, strict=True)]
        xs = [x if x.requires_grad else x.requires_grad_() for x in xs]
        with hooked(layers, make, False):
            (picked,) = problem.target.pick(forward(*xs, *problem.args), 1, problem.batch)
        if len(seen) < len(layers):
            raise fail_value("layer", "modules that forward calls", f"{len(seen)} called")
        values = [seen[i] for i in range(len(layers))]
        grads = torch.autograd.grad(picked.sum(), values, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        maps = [norm_grad_maps(a if create_graph else a.detach(), g, kind)
                for a, g in zip(values, grads, strict=True)]  # fmt: skip
        if len(maps) == 1 and size is None:
            return maps[0]
        common = size or max((m.shape[1], m.shape[2]) for m in maps)
        result: Any = 1.0
        for m in maps:
            m = F.interpolate(m[:, None], common, mode="bilinear", align_corners=False)[:, 0]
            result = result * (m / m.amax((1, 2), keepdim=True).clamp_min(1e-12))
        return result
