"""Networks that say how they are made: plain ``nn.Sequential``s.

Two things follow from a structure that is known. A straight path goes through leading affine
layers as a straight path, so they need to be applied to its ends alone, and their transpose to the
sum of gradients alone, not to each point. And the gradient of a perceptron (linear layers and
elementwise functions) is a few lines, which need no graph; where it is to be differentiated again
and bends nowhere, its graph is that of the backward pass alone.

Nothing of this applies, and the module is called as any other function, if anything might see or
change the calls: hooks, subclasses, parametrizations, autocast, compilation, modes, transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from .._modes import ordinary
from .arguments import Forward, Space, Target

_aten = torch.ops.aten
_NO_WEIGHT = (nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
Chain = tuple[Any, ...]  # modules

# ------------------------------------------------------------------------------------ recognition


def _untouched(module: nn.Module) -> bool:
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
    )


def _holds(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether its parameters are plain ones of ``dtype``, and in their places."""
    own = module._parameters
    weighs = type(module) not in _NO_WEIGHT and getattr(module, "affine", True)
    if weighs and own.get("weight") is None:
        return False
    return all(p is None or (type(p) is nn.Parameter and p.dtype is dtype) for p in own.values())


def _flatten(module: nn.Sequential, into: list[nn.Module]) -> bool:
    if not _untouched(module):
        return False
    for m in module._modules.values():
        if m is None:
            return False
        if type(m) is nn.Sequential:
            if not _flatten(m, into):
                return False
            continue
        kind = type(m)
        if kind is nn.Identity or (kind is nn.Dropout and not m.training):
            if not _untouched(m):
                return False
            continue
        into.append(m)
    return True


def chain_of(forward: Forward, x: Tensor) -> Chain | None:
    """The modules that ``forward`` calls one after the other; None if that is not known."""
    if type(forward) is not nn.Sequential or not ordinary(x):
        return None
    if _torch_module._has_any_global_hook() or torch.is_autocast_enabled(x.device.type):
        return None
    if torch._C._is_torch_function_mode_enabled():
        return None
    found: list[nn.Module] = []
    return tuple(found) if _flatten(forward, found) and found else None


@dataclass(frozen=True)
class Network:
    """A chain of modules and the shape of one sample that the first takes.

    Attributes:
        direct: what ``gradients`` can do for it: 0, nothing; 1, gradients; 2, such as can be
            differentiated again.
        last: flat samples hold their channels last, although the chain takes them first.
    """

    chain: Chain
    shape: torch.Size
    direct: int
    last: bool = False

    def rows(self, z: Tensor) -> Tensor:
        """[R, E] -> what the chain takes."""
        if self.last:
            return z.view(-1, *self.shape[1:], self.shape[0]).movedim(-1, 1)
        return z.view(-1, *self.shape)

    def flat(self, values: Tensor, *lead: int) -> Tensor:
        """What the chain takes, or a gradient of it -> [*lead, E], the inverse of ``rows``."""
        if self.last:
            values = values.movedim(1, -1)
        return values.reshape(*lead, -1)


def network_of(forward: Forward, x: Tensor, layout: Sequence[Space]) -> Network | None:
    """The structure of ``forward`` of one real tensor, points of which come flat."""
    if len(layout) != 1 or layout[0].complex:
        return None
    chain = chain_of(forward, x)
    if chain is None:
        return None
    shape, first = layout[0].shape, chain[0]
    if not shape:
        return None
    if type(first) is nn.Flatten and first.start_dim == 1 and first.end_dim == -1:
        chain, shape = chain[1:], torch.Size((shape.numel(),))
    if not chain or not _untouched(first):
        return None
    direct, kind = 0, type(chain[0])
    if (kind is nn.Linear and chain[0].in_features == shape[-1]) or (
        kind in _CONVOLUTIONS and chain[0].in_channels == shape[0]
    ):
        direct = directness(chain, layout[0].points, len(shape))
    return Network(chain, shape, direct)


# ---------------------------------------------------------------------------- leading affine layers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _affine(m: nn.Module) -> bool:
    """Whether m is an affine function of its input, of a kind worth applying to ends alone."""
    kind = type(m)
    if kind in _NORMS:
        return not m.training and m._buffers["running_mean"] is not None and _untouched(m)
    return (kind is nn.Linear or kind in _CONVOLUTIONS or kind is nn.Flatten) and _untouched(m)


def _leaves_its_input(m: nn.Module) -> bool:
    """Whether m is known not to write to its input, which is a leaf of autograd when m is first."""
    return type(m).__module__.startswith("torch.nn.modules.") and not getattr(m, "inplace", False)


@dataclass(frozen=True)
class Front:
    """Leading affine layers P of a chain, and what follows them."""

    layers: Chain
    rest: Chain
    shape: torch.Size
    direct: int

    @staticmethod
    def of(network: Network | None, space: Space) -> Front | None:
        """None where there is nothing to gain, or sums in another dtype than the path's."""
        if network is None or space.points != space.acc:
            return None
        chain = network.chain
        worth = 0
        flat = len(network.shape) == 1
        for count, m in enumerate(chain, 1):
            if not _affine(m):
                break
            flat = flat or type(m) is nn.Flatten
            if type(m) is not nn.Flatten:
                worth = count
        if not worth or worth == len(chain):
            return None
        layers, rest = chain[:worth], chain[worth:]
        direct = network.direct or directness(rest, space.points, 1 if flat else len(network.shape))
        if not direct and not _leaves_its_input(rest[0]):
            return None
        if type(layers[0]) is nn.Linear and layers[0].in_features != network.shape[-1:].numel():
            return None  # let the module say so
        for m in layers:
            if not _holds(m, space.points):
                return None
        return Front(layers, rest, network.shape, direct)

    @property
    def last(self) -> bool:
        """Whether what follows is faster with the channels last (``_last_is_faster``)."""
        return bool(self.direct) and len(self.shape) == 2 and _last_is_faster(self.rest)

    @property
    def linear(self) -> nn.Linear | None:
        """The front's only layer, if it is linear in a vector."""
        if len(self.layers) == 1 and type(self.layers[0]) is nn.Linear and len(self.shape) == 1:
            return self.layers[0]
        return None

    def enter(self, x: Tensor) -> Tensor:
        """[R, E] -> P(x), [R, ...]."""
        linear = self.linear
        if linear is not None and not x.requires_grad and not torch.is_grad_enabled():
            return nn.functional.linear(x, linear.weight, linear.bias)
        h = x.view(-1, *self.shape)
        with torch.no_grad():
            for m in self.layers:
                h = m(h)
        return h

    def leave(self, grads: Sequence[Tensor], shape: torch.Size) -> list[Tensor]:
        """Sums of gradients with respect to P(x), [B, E'] each -> with respect to x, [B, E].

        Gradients are not recorded; the caller has seen to that. ``shape`` is that of P(x).
        """
        linear, only = self.linear, self.layers[0]
        if linear is not None:
            return [torch.mm(g, linear.weight) for g in grads]
        if len(self.layers) == 1 and type(only) in _LAYERS and _plainly_padded(only):
            like = grads[0].new_empty((grads[0].shape[0], *self.shape))  # read for its shape
            return [_convolve_back(only, g.view(-1, *shape[1:]), like).flatten(1) for g in grads]
        with torch.enable_grad():
            x = grads[0].new_zeros((grads[0].shape[0], *self.shape), requires_grad=True)
            h: Any = x
            for m in self.layers:
                h = m(h)
            return [
                torch.autograd.grad(h, x, g.view(h.shape), retain_graph=True)[0].flatten(1)
                for g in grads
            ]


class Rest:
    """What follows a front, as a function."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def __call__(self, x: Tensor) -> Tensor:
        for m in self.chain:
            x = m(x)
        return x


# ------------------------------------------------------------------------------------- perceptrons

#: (module, input, which may be overwritten) -> value, and what its gradient needs.
_Apply = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
#: (module, gradient, what was kept) -> gradient of the input.
_Back = Callable[[Any, Tensor, Tensor], Tensor]


def _last_is_faster(chain: Chain) -> bool:
    """oneDNN's convolutions read 16 channels at a time. Of [R, C, L] it makes that layout and back,
    every time; where the channels lie last already it does not."""
    found = [m for m in chain if type(m) is nn.Conv1d]
    return bool(found) and torch.backends.mkldnn.is_available() and all(
        m.groups == 1 and m.in_channels % 16 == 0 and m.out_channels % 16 == 0
        and m.weight.dtype is torch.float32 and m.weight.device.type == "cpu"
        for m in found
    )  # fmt: skip


def _lies_last(x: Tensor) -> bool:
    """[R, C, L] with the channels next to one another. torch's conv1d would copy it."""
    return x.dim() == 3 and x.stride(1) == 1 and x.stride(2) == x.shape[1] > 1


def _wide_kernel(m: Any) -> Tensor:
    found: Tensor = m.weight[:, :, None]
    return found.contiguous(memory_format=torch.channels_last)


def _convolve(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if type(m) is nn.Conv1d and _plainly_padded(m) and _lies_last(x):
        value: Tensor = nn.functional.conv2d(
            x[:, :, None], _wide_kernel(m), m.bias, (1, *m.stride), (0, *m.padding),
            (1, *m.dilation), m.groups,
        )[:, :, 0]  # fmt: skip
        return value, x
    value = m(x)
    return value, x


def _convolve_back(m: Any, g: Tensor, x: Tensor) -> Tensor:
    if type(m) is nn.Conv1d and _lies_last(x):
        wide: Tensor = _aten.convolution_backward(
            g[:, :, None], x[:, :, None], _wide_kernel(m), None, (1, *m.stride), (0, *m.padding),
            (1, *m.dilation), False, (0, *m.output_padding), m.groups, (True, False, False),
        )[0]  # fmt: skip
        return wide[:, :, 0]
    found: Tensor = _aten.convolution_backward(
        g, x, m.weight, None, m.stride, m.padding, m.dilation, False, m.output_padding, m.groups,
        (True, False, False),
    )[0]  # fmt: skip
    return found


def _plainly_padded(m: Any) -> bool:
    """Whether ``_convolve_back`` holds for a convolution."""
    return m.padding_mode == "zeros" and not isinstance(m.padding, str)


def _pool_back(m: Any, g: Tensor, x: Tensor) -> Tensor:
    # Written out in x's memory order: torch's elementwise gradients of an expanded one go element
    # by element where the channels lie last.
    return torch.empty_like(x).copy_(g / x[0, 0].numel())


def _twice(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


_FUNCTIONS: dict[type, tuple[_Apply, _Back]] = {
    nn.ReLU: (
        lambda m, x: _twice(x.relu_()),
        lambda m, g, y: _aten.threshold_backward(g, y, 0),
    ),
    nn.LeakyReLU: (
        lambda m, x: (nn.functional.leaky_relu(x, m.negative_slope), x),
        lambda m, g, x: _aten.leaky_relu_backward(g, x, m.negative_slope, False),
    ),
    nn.Tanh: (lambda m, x: _twice(x.tanh_()), lambda m, g, y: _aten.tanh_backward(g, y)),
    nn.Sigmoid: (lambda m, x: _twice(x.sigmoid_()), lambda m, g, y: _aten.sigmoid_backward(g, y)),
    nn.GELU: (
        lambda m, x: (nn.functional.gelu(x, approximate=m.approximate), x),
        lambda m, g, x: _aten.gelu_backward(g, x, approximate=m.approximate),
    ),
    nn.SiLU: (
        lambda m, x: (nn.functional.silu(x), x),
        lambda m, g, x: _aten.silu_backward(g, x),
    ),
    nn.Softmax: (
        lambda m, x: _twice(torch.softmax(x, 1)),
        lambda m, g, y: _aten._softmax_backward_data(g, y, 1, y.dtype),
    ),
}
#: Layers other than linear ones, of one number of dimensions behind the batch.
_LAYERS: dict[type, tuple[int, _Apply, _Back]] = {
    nn.Conv1d: (2, _convolve, _convolve_back),
    nn.Conv2d: (3, _convolve, _convolve_back),
    nn.AdaptiveAvgPool1d: (2, _convolve, _pool_back),
    nn.AdaptiveAvgPool2d: (3, _convolve, _pool_back),
}
_BENT_NOWHERE = (nn.ReLU, nn.LeakyReLU)


def directness(chain: Chain, dtype: torch.dtype, dims: int) -> int:
    """``Network.direct`` of a chain that takes ``dims`` dimensions behind the batch."""
    weights, level = False, 2
    for m in chain:
        kind = type(m)
        if not _untouched(m):
            return 0
        if kind is nn.Linear or kind in _LAYERS:
            if dims != (1 if kind is nn.Linear else _LAYERS[kind][0]):
                return 0
            if not _holds(m, dtype):
                return 0
            if kind is not nn.Linear:
                level = 1
                if kind in _CONVOLUTIONS:
                    if not _plainly_padded(m):
                        return 0
                elif m.output_size not in (1, (1, 1)):
                    return 0
            weights = weights or bool(m._parameters)
        elif kind is nn.Flatten:
            if m.start_dim != 1 or m.end_dim != -1:
                return 0
            dims, level = 1, 1
        elif kind not in _FUNCTIONS or (kind is nn.Softmax and (dims != 1 or m.dim not in (1, -1))):
            return 0
        elif kind not in _BENT_NOWHERE:
            level = 1
    return level if weights and dims == 1 else 0


class _Attach(torch.autograd.Function):
    """Its first argument, with the others among what it depends on: their gradients are zeros."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        return up, *(
            torch.zeros_like(t) if n else None
            for t, n in zip(ctx.saved_tensors, needed, strict=True)
        )


def gradients(
    chain: Chain, z: Tensor, target: Target, points: int, batch: int, create_graph: bool,
    before: nn.Linear | None = None, also: Sequence[Tensor] = (),
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """For each target: its values (rows,), and gradients of a perceptron at z [rows, features].

    Args:
        z: overwritten if the chain does not begin with a linear layer.
        create_graph: the gradients depend on the parameters, and formally on z, ``also`` and the
            biases: by zero, since they are piecewise constant in those.
        before: a layer whose output z is: gradients are then with respect to its input.
    """
    with torch.no_grad():
        kept: list[Any] = []
        h, fresh = z.detach(), True
        for m in chain:
            kind = type(m)
            if kind is nn.Linear:
                h, fresh = nn.functional.linear(h, m.weight, m.bias), True
                kept.append(None)
            elif kind in _FUNCTIONS:
                h, own = _FUNCTIONS[kind][0](m, h if fresh else h.clone())
                fresh = False
                kept.append(own)
            elif kind is nn.Flatten:
                kept.append(h.shape)
                h = h.flatten(1)
            else:
                h, own = _LAYERS[kind][1](m, h)
                fresh = True
                kept.append(own)
        if not create_graph:
            return _pulled_back(chain, kept, h, target, points, batch, before)
    every = (before, *chain)
    others: list[Tensor] = [m.bias for m in every if type(m) is nn.Linear and m.bias is not None]
    others = [t for t in (z, *also, *others) if t.requires_grad]
    with torch.enable_grad():
        found = _pulled_back(chain, kept, h, target, points, batch, before)
        return [(v, _Attach.apply(g, *others) if others else g) for v, g in found]


def _pulled_back(
    chain: Chain, kept: list[Any], output: Tensor, target: Target, points: int, batch: int,
    before: nn.Linear | None,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """The values of each target, and their gradients pulled back through the chain."""
    rows, classes = output.shape
    found = []
    for index in [(t,) for t in range(classes)] if target.all else target.indices:
        values = target.pick_one(output, index, points, batch)
        steps = list(zip(chain, kept, strict=True))[::-1]
        t: Any = 0 if index is None else index[0]
        last = chain[-1]
        if type(last) is nn.Linear and not isinstance(t, Tensor):
            steps = steps[1:]
            g = last.weight[t].expand(rows, -1)
        else:  # by a matrix product, whose gradient is one too, and not a scattered sum
            g = torch.zeros_like(output)
            if isinstance(t, Tensor):
                g.scatter_(1, (t.to(output.device) % classes).repeat(points)[:, None], 1)
            else:
                g[:, t] = 1
        for m, own in steps:
            kind = type(m)
            if kind is nn.Linear:
                g = torch.mm(g, m.weight)
            elif kind in _FUNCTIONS:
                g = _FUNCTIONS[kind][1](m, g, own)
            elif kind is nn.Flatten:
                g = g.reshape(own)
            else:
                g = _LAYERS[kind][2](m, g, own)
        if before is not None:
            g = torch.mm(g, before.weight)
        found.append((values, g))
    return found
