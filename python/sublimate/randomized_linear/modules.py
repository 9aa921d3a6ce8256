"""Modules with torch.nn's signatures that keep a sketch of their input."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backends, _checks
from . import arguments, functional, seeds
from .autograd import ops

_STATE = ("sketch_key", "sketch_count")
_numbers = itertools.count()
Self = TypeVar("Self", bound="Sketched")


class Group:
    """Layers of one parent module that may read the same input, and then share its sketch.

    Hooks on the parent open and close it, so that nothing outlives the parent's forward. Which
    layers read one tensor is seen when they are called: key and value of a cross attention share
    one sketch, the query has its own.
    """

    def __init__(self, parent: nn.Module, members: list[Sketched]) -> None:
        self.members = members
        self.handles: list[functional.SharedInput] | None = None
        self.hooks = [
            parent.register_forward_pre_hook(self.open),
            parent.register_forward_hook(self.close),
        ]
        for member in members:
            member.group = self

    def open(self, parent: nn.Module, args: Any) -> None:
        self.handles = []

    def close(self, parent: nn.Module, args: Any, output: Any) -> None:
        self.handles = None

    def disband(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for member in self.members:
            member.group = None

    @property
    def first(self) -> Sketched:
        """The layer whose seeds the group takes: the first that is trained."""
        return next((m for m in self.members if m.weight.requires_grad), self.members[0])

    def handle(self, x: Tensor) -> functional.SharedInput | None:
        """The sketch of x, made by the first layer that asks; None outside the parent's forward."""
        if self.handles is None:
            return None
        for found in self.handles:
            if found.x is x:
                return found
        made = self.first.own_handle(x)
        self.handles.append(made)
        return made


def _check_sizes(least: int, **sizes: Any) -> None:
    """Integers of any library, as torch takes them."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (numbers.Integral, torch.SymInt)):
            raise _checks.fail_type(name, "an int", size)
        if not least <= int(size) < 2**31:
            raise _checks.fail_value(name, f"an int from {least} to {2**31 - 1}", size)


def _is_count(saved: Tensor) -> bool:
    """Whether a saved key or count is what the layers save."""
    if saved.dtype != torch.int64 or saved.dim() != 0:
        return False
    return saved.is_meta or int(saved) >= 0


class Sketched(nn.Module):
    """What the layers share: options, seeds, and the state that makes a resumed run exact.

    Buffers ``sketch_key`` (hash of base seed and layer) and ``sketch_count`` (training forwards so
    far), int64 of no dimension. A checkpoint of the torch.nn module, without them, loads too.
    """

    sketch_key: Tensor
    sketch_count: Tensor
    weight: Tensor

    def _set_options(
        self,
        ratio: float,
        sketch: str,
        seed: int,
        layer: int | None,
        rank: Any,
        backend: str | None,
        device: Any,
    ) -> None:
        arguments.check_options(ratio, sketch)
        _checks.integer_between("seed", seed, 0, 2**61 - 1)
        if layer is not None:
            _checks.integer_between("layer", layer, 0, 2**60)
        if backend is not None:
            _backends._validated(backend, "backend")
        self.ratio, self.sketch, self.backend = ratio, sketch, backend
        self.rank = seeds.resolve_rank(rank)
        # Layers that come with no number take the next one of the process.
        self._key = seeds.mix(seed, *((layer,) if layer is not None else (2**60, next(_numbers))))
        self.group: Group | None = None
        self.replay = seeds.Replay()
        self.register_buffer("sketch_key", torch.tensor(self._key, device=device))
        self.register_buffer("sketch_count", torch.tensor(0, device=device))

    def _apply(self: Self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        was_meta = self.sketch_key.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.sketch_key.is_meta:  # to_empty brings garbage
            self.sketch_key.fill_(self._key)
            self.sketch_count.zero_()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name in _STATE:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and not _is_count(saved):
                arguments[-1].append(
                    f"{prefix}{name}: expected a 0-dim int64 tensor >= 0, "
                    f"got {saved.dtype} of shape {tuple(saved.shape)}"
                )
                return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        missing = arguments[2]
        missing[:] = [key for key in missing if key not in [prefix + name for name in _STATE]]

    def _fresh_seed(self) -> Any:
        term = seeds.default_rank_term() if self.rank is None else seeds.rank_term(self.rank)
        explicit = seeds.step.active
        if explicit is not None:
            call = 0
            if not torch.compiler.is_compiling():
                call = explicit.calls.get(self, 0)
                explicit.calls[self] = call + 1
            term = (term + call * seeds.GOLDEN) & seeds.MASK
            return ops.randomized_linear_seed(self.sketch_key, explicit.term, 1, term)
        self.sketch_count.add_(1)
        return ops.randomized_linear_seed(self.sketch_key, self.sketch_count, seeds.GOLDEN, term)

    def next_seed(self) -> Tensor:
        """Seed of this forward: a fresh one, or inside backward that of the forward replayed."""
        with torch.no_grad():
            # Compiled graphs recompute by themselves, from values they have.
            if torch.compiler.is_compiling():
                return self._fresh_seed()
            if seeds.in_backward():
                known = self.replay.recall()
                return self._fresh_seed() if known is None else known
            seed = self._fresh_seed()
            self.replay.remember(seed)
            return seed

    def own_handle(self, x: Tensor) -> functional.SharedInput:
        return functional.SharedInput(
            x, self.ratio, self.sketch, self.next_seed(), None, self.backend
        )

    def records(self) -> bool:
        """Whether this forward records a gradient of the weight, so that a sketch is wanted."""
        if not self.weight.requires_grad:
            return False
        if torch.is_grad_enabled():
            return True
        # The first forward of a reentrant checkpoint looks like this, and is replayed later.
        if not torch.compiler.is_compiling() and (self.group is None or self.group.first is self):
            if self.training:
                self.next_seed()
            else:
                self.replay.last = None
        return False

    def handle(self, x: Tensor) -> functional.SharedInput:
        """A sketch of x: the group's, or the layer's own."""
        shared = None if self.group is None else self.group.handle(x)
        return self.own_handle(x) if shared is None else shared

    def _shown_options(self) -> str:
        return f"ratio={self.ratio:g}, sketch={self.sketch!r}"


class Linear(Sketched, nn.Linear):
    """torch.nn.Linear that keeps ``ratio`` of its input's rows for backward, sketched.

    Output and gradients of input and bias are exact; the gradient of the weight is an unbiased
    estimate (``functional.linear``), drawn afresh at every forward that records one, in training
    and in eval mode. Where no gradient of the weight is wanted, it is torch.nn.Linear.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear.
        ratio, sketch: as in ``functional.linear``.
        seed: base seed, in [0, 2**61).
        layer: number of the layer; layers of equal seed and number draw the same sketches. None:
            the next number of this process.
        rank: int, process group or None (the default group). Ranks draw apart; give replicas that
            must agree (tensor parallel) the same rank, by the data-parallel group or an int.
        backend: as in ``functional``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        ratio: float = 0.2,
        sketch: str = "srht",
        seed: int = 0,
        layer: int | None = None,
        rank: Any = None,
        backend: str | None = None,
    ) -> None:
        _check_sizes(0, in_features=in_features, out_features=out_features)
        _checks.flags(bias=bias)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_options(ratio, sketch, seed, layer, rank, backend, self.weight.device)

    @classmethod
    def of(cls, module: nn.Linear, **options: Any) -> Linear:
        """A layer with the very parameters of a torch.nn.Linear."""
        new = cls(
            module.in_features, module.out_features, module.bias is not None, "meta", **options
        )
        return _adopt(new, module)

    def forward(self, input: Tensor) -> Tensor:
        if not self.records():
            return F.linear(input, self.weight, self.bias)
        return self.handle(input).linear(self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, {self._shown_options()}"


class Conv2d(Sketched, nn.Conv2d):
    """torch.nn.Conv2d with 1 x 1 kernels that keeps a sketch of its input's pixels.

    The rows of the sketch are the pixels of all images, (B H W, C): a channels-last input is read
    as it is, another one is copied, and so is the output back. Options as in ``Linear``.

    Args:
        in_channels, out_channels, kernel_size, ..., dtype: as in torch.nn.Conv2d, with kernel_size
            1, padding 0 and groups 1.

    Raises:
        ValueError: another kernel size, padding or groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        ratio: float = 0.2,
        sketch: str = "srht",
        seed: int = 0,
        layer: int | None = None,
        rank: Any = None,
        backend: str | None = None,
    ) -> None:
        _check_sizes(1, in_channels=in_channels, out_channels=out_channels, groups=groups)
        _checks.flags(bias=bias)
        for name, value in (("kernel_size", kernel_size), ("stride", stride),
                            ("padding", padding), ("dilation", dilation)):  # fmt: skip
            if not isinstance(value, (int, tuple, list, str)):
                raise _checks.fail_type(name, "an int or two ints", value)
            for size in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(size, int) and not -(2**31) < size < 2**31:
                    raise _checks.fail_value(name, "a size below 2**31", size)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,  # type: ignore[arg-type]
        )  # fmt: skip
        why = not_one_by_one(self)
        if why is not None:
            raise _checks.fail_value(*why)
        self._set_options(ratio, sketch, seed, layer, rank, backend, self.weight.device)

    @classmethod
    def of(cls, module: nn.Conv2d, **options: Any) -> Conv2d:
        """A layer with the very parameters of a torch.nn.Conv2d."""
        new = cls(
            module.in_channels, module.out_channels, 1, module.stride,  # type: ignore[arg-type]
            bias=module.bias is not None, device="meta", **options,
        )  # fmt: skip
        return _adopt(new, module)

    def forward(self, input: Tensor) -> Tensor:
        _checks.floating_tensor("input", input)
        if input.dim() not in (3, 4):
            raise _checks.fail_value("input", "shape ([B,] C, H, W)", tuple(input.shape))
        if not self.records():
            return nn.Conv2d.forward(self, input)
        x = input.unsqueeze(0) if input.dim() == 3 else input
        down, across = self.stride
        pixels = x[:, :, ::down, ::across].permute(0, 2, 3, 1)  # [B, H, W, C]
        y = self.handle(pixels).linear(self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
            y = y.contiguous()
        return y.squeeze(0) if input.dim() == 3 else y

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, {self._shown_options()}"


def not_one_by_one(module: nn.Conv2d) -> tuple[str, str, Any] | None:
    """(argument, expected, got) of what keeps a convolution from being a linear layer, or None."""
    if tuple(module.kernel_size) != (1, 1):
        return "kernel_size", "1", module.kernel_size
    if module.padding not in ((0, 0), "valid", "same"):
        return "padding", "0", module.padding
    return None if module.groups == 1 else ("groups", "1", module.groups)


Layer = TypeVar("Layer", Linear, Conv2d)


def _adopt(new: Layer, old: nn.Linear | nn.Conv2d) -> Layer:
    new.weight = old.weight
    new.bias = old.bias  # type: ignore[assignment]
    new.sketch_key = torch.tensor(new._key, device=old.weight.device)
    new.sketch_count = torch.tensor(0, device=old.weight.device)
    return new
