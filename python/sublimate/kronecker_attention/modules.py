"""An attention module over pairs (or longer tuples) of positions, in torch.nn's form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backends, _checks
from . import arguments, functional


class KroneckerAttention(nn.Module):
    """Self- or cross-attention of order k: a query reads k - 1 positions at a time.

    Takes the place of ``torch.nn.MultiheadAttention(..., batch_first=True)`` in a block, and of
    ``self_attn`` in ``torch.nn.TransformerEncoderLayer``: one projection for queries, one of keys
    and one of values for each key set, one of the output.

    Args:
        embed_dim: width of the model, a multiple of ``num_heads``.
        num_heads: query heads. kv_heads: key and value heads, a divisor; None: as many.
        order: k, 3 for pairs. Orders above 3 have the polynomial method only.
        window: a width for each key set, or None; causal: as in ``kronecker_attention``.
        qk_norm: scale queries and keys to unit k-norm and queries by a learnt factor for each head,
            from 1: it then bounds the magnitude of the head's logits, so that the polynomial
            method stays valid in training.
        method, degree, coefficients, tol: as in ``kronecker_attention``.
        bias: of the projections. device, dtype: as in torch.nn. backend: as in ``functional``.
    """

    #: What torch.nn.TransformerEncoderLayer asks of its attention; the last keeps its own fused
    #: inference path, which knows only ordinary attention, out of the way.
    batch_first = True
    _qkv_same_embed_dim = True
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kv_heads: int | None = None,
        order: int = 3,
        window: Sequence[int] | None = None,
        causal: bool = False,
        qk_norm: bool = False,
        method: str = "auto",
        tol: float | None = None,
        *,
        degree: int | None = None,
        coefficients: str = "taylor",
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _checks.integer_between("embed_dim", embed_dim, 1, 2**31)
        _checks.integer_between("num_heads", num_heads, 1, 2**31)
        if embed_dim % num_heads:
            raise _checks.fail_value(
                "embed_dim", f"a multiple of num_heads, {num_heads}", embed_dim
            )
        if kv_heads is None:
            kv_heads = num_heads
        _checks.integer_between("kv_heads", kv_heads, 1, 2**31)
        if num_heads % kv_heads:
            raise _checks.fail_value("kv_heads", f"a divisor of num_heads, {num_heads}", kv_heads)
        _checks.integer_between("order", order, 3, 8)
        arguments.check_window(window, order - 1)
        _checks.flags(causal=causal, qk_norm=qk_norm, bias=bias)
        arguments.check_method(method, degree, coefficients, tol)
        if order > 3 and method != "polynomial":
            raise _checks.fail_value("method", f'"polynomial" with order {order}', repr(method))
        if order > 3 and tol is not None:
            raise _checks.fail_value("tol", f"None with order {order}; give degree", tol)
        if method == "hybrid" and (window is None or not all(window)):
            raise _checks.fail_value("window", 'two widths > 0 with method="hybrid"', window)
        if backend is not None:
            _backends._validated(backend, "backend")
        self.embed_dim, self.num_heads, self.kv_heads = embed_dim, num_heads, kv_heads
        self.head_dim, self.order, self.window = embed_dim // num_heads, order, window
        self.causal, self.method, self.tol, self.backend = causal, method, tol, backend
        self.degree, self.coefficients = degree, coefficients
        options = {"bias": bias, "device": device, "dtype": dtype}
        width = kv_heads * self.head_dim
        self.q_proj = nn.Linear(embed_dim, embed_dim, **options)
        self.k_projs, self.v_projs = (
            nn.ModuleList(nn.Linear(embed_dim, width, **options) for _ in range(order - 1))
            for _ in range(2)
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim, **options)
        self.log_radius = (
            nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype)) if qk_norm else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections as torch.nn.MultiheadAttention starts them: uniform by Xavier, no bias."""
        for module in (self.q_proj, *self.k_projs, *self.v_projs, self.out_proj):
            assert isinstance(module, nn.Linear)
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.log_radius is not None:
            nn.init.zeros_(self.log_radius)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, N, heads, D) seen as (B, heads, N, D)."""
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)

    def _unit(self, x: Tensor) -> Tensor:
        """Rows of k-norm 1."""
        return nn.functional.normalize(x, p=float(self.order), dim=-1, eps=1e-6)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attends ``query`` to all tuples of positions of ``key``.

        Args:
            query: (B, N, E). key, value: (B, M, E); None: query, and key.
            key_padding_mask: (B, M), True (or -inf) where a position is left out, as in torch.nn.
            need_weights: False: weights of tuples would be N M^(k-1) numbers.
            attn_mask: None, or with ``is_causal=True`` any, which then means the causal one.
            is_causal: row i reads positions j <= i, also if ``causal`` is not set.

        Returns:
            (B, N, E) and None, in the place of the weights.

        Raises:
            TypeError, ValueError: a bad argument.
        """
        key = query if key is None else key
        value = key if value is None else value
        for name, x in (("query", query), ("key", key), ("value", value)):
            _checks.floating_tensor(name, x)
            if x.dim() != 3 or x.shape[-1] != self.embed_dim:
                raise _checks.fail_value(
                    name, f"shape (batch, length, {self.embed_dim})", tuple(x.shape)
                )
            if x.shape[0] != query.shape[0] or (name == "value" and x.shape[1] != key.shape[1]):
                length = str(key.shape[1]) if name == "value" else "length"
                raise _checks.fail_value(
                    name, f"shape ({query.shape[0]}, {length}, {self.embed_dim})", tuple(x.shape)
                )
            if x.device != query.device:
                raise _checks.fail_value(name, f"the device of query, {query.device}", x.device)
        _checks.flags(need_weights=need_weights, is_causal=is_causal)
        if need_weights:
            raise _checks.fail_value(
                "need_weights", "False: there is a weight for each tuple", True
            )
        if attn_mask is not None and not is_causal:
            got = tuple(attn_mask.shape) if isinstance(attn_mask, Tensor) else attn_mask
            raise _checks.fail_value("attn_mask", "None, or any with is_causal=True", got)
        mask = self._mask(key_padding_mask, key)
        q = self._heads(self.q_proj(query), self.num_heads)
        keys = [self._heads(p(key), self.kv_heads) for p in self.k_projs]
        values = [self._heads(p(value), self.kv_heads) for p in self.v_projs]
        scale: float | None = None
        if self.log_radius is not None:
            factor = self.log_radius.exp().to(q.dtype)[:, None, None]
            q, keys, scale = self._unit(q) * factor, [self._unit(k) for k in keys], 1.0
        causal = self.causal or is_causal
        if self.order == 3:
            out = functional.kronecker_attention(
                q, *keys, *values, scale=scale, causal=causal, window=self.window, mask1=mask,
                mask2=mask, method=self.method, degree=self.degree, tol=self.tol,
                coefficients=self.coefficients, backend=self.backend,
            )  # fmt: skip
        else:
            out = functional.polynomial_attention(
                q, keys, values, degree=self.degree or 2, coefficients=self.coefficients,
                scale=scale, causal=causal, window=self.window, masks=[mask] * len(keys),
                backend=self.backend,
            )  # fmt: skip
        return self.out_proj(out.transpose(1, 2).flatten(2)), None

    def _mask(self, left_out: Tensor | None, key: Tensor) -> Tensor | None:
        """True where a position is read."""
        if left_out is None:
            return None
        if not isinstance(left_out, Tensor):
            raise _checks.fail_type("key_padding_mask", "a tensor or None", left_out)
        if not (left_out.dtype == torch.bool or left_out.is_floating_point()):
            raise _checks.fail_kind(
                "key_padding_mask", "a bool tensor, True where a position is left out, or a float "
                "one of 0 and -inf", str(left_out.dtype),
            )  # fmt: skip
        if tuple(left_out.shape) != tuple(key.shape[:2]):
            raise _checks.fail_value(
                "key_padding_mask", f"shape {tuple(key.shape[:2])}", tuple(left_out.shape)
            )
        if left_out.dtype == torch.bool:
            return ~left_out
        # What torch.nn's blocks make of a bool mask. Anything between would be a bias on logits.
        read = left_out == 0
        if not torch.compiler.is_compiling() and not bool((read | (left_out == -math.inf)).all()):
            raise _checks.fail_value("key_padding_mask", "0 and -inf only", "other numbers")
        return read

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, kv_heads={self.kv_heads}, "
            f"order={self.order}, window={self.window}, causal={self.causal}, "
            f"method={self.method!r}"
        )
