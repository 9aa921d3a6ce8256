"""The codebook classes: borders, codes and levels, checked, saved, shown and moved to devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .. import _checks
from .._dtypes import accumulator
from .._modes import ordinary_tensors
from .reference import FUNCTIONS, encode
from .target import INTERNAL
from .target import builtin as find_builtin

MODES = ("value", "interval", "stochastic")
MAX_BITS = 8
MAX_BORDERS = 255
_Code = TypeVar("_Code", bound="IntervalCode")


def check_bits(bits: Any) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {type(bits).__name__}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be 1 to {MAX_BITS}, got {bits}")
    return bits


def _vector(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        _checks.readable(name, value)
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor of numbers, got: {error}") from error
    whole = not tensor.is_floating_point()
    if tensor.is_complex() or (dtype == torch.int64 and not whole and tensor.numel()):
        raise TypeError(f"{name} must hold {dtype} values, got {tensor.dtype}")
    if tensor.dim() != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(tensor.shape)}")
    tensor = tensor.to(dtype, copy=True)
    if dtype == torch.float64 and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {tensor.tolist()}")
    return tensor


@dataclass(frozen=True, eq=False, repr=False)
class IntervalCode:
    """Codes of intervals, and per code one value in each table. Base of the two codebooks.

    Attributes:
        borders: float64 (m,), strictly ascending, m <= 255.
        codes: int64 (m + 1,), code of each interval; a border belongs to the interval on its left.
        levels: float64 (2**bits,), the value of f' that each code stands for.
        name, params: the function; ``density``: what it was fitted to, in words.

    Raises:
        TypeError, ValueError: naming the field, what it must be and what it is.
    """

    borders: Tensor
    codes: Tensor
    levels: Tensor
    bits: int
    name: str = field(default="custom", kw_only=True)
    params: tuple[float, ...] = field(default=(), kw_only=True)
    density: str = field(default="unknown", kw_only=True)
    _cache: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict, init=False)

    _tables: ClassVar[tuple[str, ...]] = ("levels",)

    def __post_init__(self) -> None:
        with ordinary_tensors():
            self._validate()

    def _validate(self) -> None:
        set_ = object.__setattr__
        bits = check_bits(self.bits)
        set_(self, "borders", _vector("borders", self.borders, torch.float64))
        set_(self, "codes", _vector("codes", self.codes, torch.int64))
        for field_name in ("name", "density"):
            value = getattr(self, field_name)
            if not isinstance(value, str):
                raise TypeError(f"{field_name} must be a str, got {type(value).__name__}")
        if not isinstance(self.params, (tuple, list)):
            raise TypeError(f"params must be a tuple of numbers, got {type(self.params).__name__}")
        for p in self.params:
            _checks.number("params", p)
        set_(self, "params", tuple(float(p) for p in self.params))
        count = len(self.borders)
        if count > MAX_BORDERS:
            raise ValueError(f"borders must have at most {MAX_BORDERS} entries, got {count}")
        if bool((self.borders.diff() <= 0).any()):
            raise ValueError(f"borders must be strictly ascending, got {self.borders.tolist()}")
        if len(self.codes) != count + 1:
            raise ValueError(
                f"codes must have len(borders) + 1 = {count + 1} entries, got {len(self.codes)}"
            )
        if bool(((self.codes < 0) | (self.codes >= 2**bits)).any()):
            raise ValueError(
                f"codes of {bits} bits must be in [0, {2**bits}), got {self.codes.tolist()}"
            )
        for name in self._tables:
            table = _vector(name, getattr(self, name), torch.float64)
            if len(table) != 2**bits:
                raise ValueError(
                    f"{name} must have 2**bits = {2**bits} entries for bits={bits}, "
                    f"got {len(table)}"
                )
            set_(self, name, table)

    def tensors(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        """(borders, codes as uint8, levels, any further table) on a device, made once.

        Args:
            dtype: of the input; borders and tables come in float64 for float64, else in float32.
        """
        key = (torch.device(device), accumulator(dtype))
        if key not in self._cache:
            with ordinary_tensors():
                tables = (getattr(self, name).to(*key) for name in self._tables)
                codes = self.codes.to(key[0], torch.uint8)
                self._cache[key] = (self.borders.to(*key), codes, *tables)
        return self._cache[key]

    def _decode(self, x: Tensor, table: Tensor) -> Tensor:
        _checks.floating_tensor("x", x)
        _checks.readable("x", x)
        code = encode(x, self.borders.to(x.device), self.codes.to(x.device))
        return table.to(x.device, accumulator(x.dtype))[code]

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; ``from_dict`` gives an equal codebook back."""
        out: dict[str, Any] = {}
        for name, value in self._fields().items():
            if isinstance(value, Tensor):
                value = value.tolist()
            out[name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls: type[_Code], data: dict[str, Any]) -> _Code:
        """Inverse of ``to_dict``. Raises ValueError on missing or unknown keys."""
        known = {f.name for f in fields(cls) if f.init}
        missing = {"borders", "codes", "levels", "bits"} - data.keys()
        unknown = data.keys() - known
        if missing or unknown:
            raise ValueError(
                f"data of a {cls.__name__} must have known keys, got missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}"
            )
        return cls(**data)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self.to_dict(), other.to_dict()
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.name, self.params, self.bits, tuple(self.levels.tolist())))

    def _rows(self) -> list[str]:
        edge = ["-inf", *(f"{b:.5g}" for b in self.borders.tolist()), "inf"]
        rows = []
        for k, code in enumerate(self.codes.tolist()):
            values = "  ".join(f"{float(getattr(self, t)[code]): .5g}" for t in self._tables)
            rows.append(f"  ({edge[k]}, {edge[k + 1]}]".ljust(30) + f"code {code:<3} {values}")
        return rows

    def _title(self) -> str:
        params = f"{self.params}" if self.params else ""
        return f"{self.name}{params}, {self.bits} bits, {self.density}"


@dataclass(frozen=True, eq=False, repr=False)
class Codebook(IntervalCode):
    """Few-bit stand-in q(x) for f'(x).

    ``mode`` "value" and "interval": q(x) = levels[codes[searchsorted(borders, x)]], and ``mse`` is
    E[(f' - q)^2]. ``mode`` "stochastic": levels ascend and cover f'; the code is one of the two
    around f'(x), drawn so that E[q] = f' (``reference.encode_stochastic``); borders are empty,
    codes [0], and ``mse`` is the mean variance. ``mse`` is None when not known.

    ``fn`` is the activation; None after ``from_dict`` of a codebook of a user's callable.
    """

    mode: str = field(default="interval", kw_only=True)
    mse: float | None = field(default=None, kw_only=True)
    fn: Callable[..., Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {self.mode!r}")
        descends = bool((self.levels.diff() < 0).any())
        if self.mode == "stochastic" and (len(self.borders) or descends):
            raise ValueError("a stochastic codebook must have ascending levels and no borders")

    @property
    def builtin(self) -> bool:
        """``name`` and ``params`` say all: fitted to a built-in function."""
        known = FUNCTIONS.get(self.name) or INTERNAL.get(self.name)
        return known is not None and self.fn is known.forward

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        data["fn"] = "builtin" if self.builtin else None
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Codebook:
        if data.get("fn") not in ("builtin", None):
            raise ValueError(f"fn must be 'builtin' or None, got {data['fn']!r}")
        fn = find_builtin(data.get("name")).forward if data.get("fn") else None
        return super().from_dict({**data, "fn": fn})

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.to_dict(), None if self.builtin else self.fn)

    def decode(self, x: Tensor) -> Tensor:
        """q(x) of x's shape, in float64 for float64 and else float32. Not for mode "stochastic"."""
        if self.mode == "stochastic":
            raise ValueError("decode needs mode 'value' or 'interval', got 'stochastic'")
        return self._decode(x, self.levels)

    def __repr__(self) -> str:
        mse = "unknown" if self.mse is None else f"{self.mse:.5g}"
        head = f"Codebook({self._title()}, mode {self.mode}, mse {mse})"
        if self.mode == "stochastic":
            return f"{head}\n  levels " + " ".join(f"{v:.5g}" for v in self.levels.tolist())
        return "\n".join([head, *self._rows()])


@dataclass(frozen=True, eq=False, repr=False)
class GatedCodebook(IntervalCode):
    """One code of g for y = act(g) u: ``levels`` stand for act'(g), ``values`` for act(g).

    Attributes:
        values: float64 (2**bits,).
        mse_derivative, mse_value: E[(act' - level)^2], E[(act - value)^2]; None when not known.
    """

    values: Tensor = field(default=None, kw_only=True)  # type: ignore[assignment]
    mse_derivative: float | None = field(default=None, kw_only=True)
    mse_value: float | None = field(default=None, kw_only=True)

    _tables: ClassVar[tuple[str, ...]] = ("levels", "values")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.to_dict(), None)

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(act'(x), act(x)) as the codes give them, each of x's shape."""
        return self._decode(x, self.levels), self._decode(x, self.values)

    def __repr__(self) -> str:
        mse = f"mse of act' {self.mse_derivative}, of act {self.mse_value}"
        return "\n".join([f"GatedCodebook({self._title()}, {mse})", *self._rows()])


def _restore(kind: type[IntervalCode], data: dict[str, Any], fn: Any) -> IntervalCode:
    code = kind.from_dict(data)
    if fn is not None:
        object.__setattr__(code, "fn", fn)
    return code
