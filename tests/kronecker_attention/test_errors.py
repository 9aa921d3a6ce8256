"""Bad input: the exception, and a message naming argument, expected and got; nothing runs."""

from __future__ import annotations

import re

import pytest
import torch
from sublimate import BackendUnavailable
from sublimate.kronecker_attention import (
    KroneckerAttention,
    certificate,
    choose,
    estimated_error,
    kronecker_attention,
    ops,
    polynomial_attention,
    strassen_attention,
)

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 3)
MASK = torch.ones(2, 6, dtype=torch.bool)
POLYNOMIAL = {"method": "polynomial"}
CALLS = [
    ({"q": 3.0}, TypeError, "q: expected a torch.Tensor, got float"),
    ({"q": Q.long()}, TypeError, "q: expected a tensor of float32.*got torch.int64"),
    ({"q": Q[0]}, ValueError, r"q: expected shape \(batch, heads, length, head dimension\)"),
    ({"k1": K.double()}, TypeError, "k1: expected the dtype of q, torch.float32, got torch.float6"),
    ({"v2": V.int()}, TypeError, "v2: expected a tensor of float32.*got torch.int32"),
    ({"k2": K.to("meta")}, ValueError, "k2: expected the device of q, cpu, got meta"),
    ({"k1": K[..., :7]}, ValueError, r"k1: expected shape \(2, 2, length, 8\), got \(2, 2, 6, 7\)"),
    ({"k2": K[:, :1]}, ValueError, r"k2: expected shape \(2, 2, length, 8\), got \(2, 1, 6, 8\)"),
    ({"v1": V[:, :, :5]}, ValueError, r"v1: expected shape \(2, 2, 6, 3\), for k1 of length 6"),
    ({"v2": V[..., :2]}, ValueError, r"v2: expected shape \(2, 2, 6, 3\).*got \(2, 2, 6, 2\)"),
    ({"q": Q[:, :3]}, ValueError, "k1: expected a number of heads that divides q's 3, got 2"),
    ({"q": Q[..., :0], "k1": K[..., :0], "k2": K[..., :0]}, ValueError, "q: expected a head dim"),
    ({"mask1": MASK.float()}, TypeError, "mask1: expected a bool tensor.*got torch.float32"),
    ({"mask2": MASK[:, :5]}, ValueError, r"mask2: expected shape \(2, 6\), got \(2, 5\)"),
    ({"mask1": MASK.to_sparse()}, TypeError, r"mask1: expected a dense \(strided\) tensor, got"),
    ({"q": Q.cfloat()}, TypeError, "q: expected a tensor of float32.*got torch.complex64"),
    ({"v1": V.half()}, TypeError, "v1: expected the dtype of q, torch.float32, got torch.float16"),
    ({"tol": float("nan")}, ValueError, "tol: expected a number, got nan"),
    ({"tol": -1}, ValueError, "tol: expected a number > 0 or None, got -1"),
    ({"mask1": [True]}, TypeError, "mask1: expected a bool tensor, .*got list"),
    ({"window": 3}, TypeError, "window: expected None or 2 ints >= 0, .*got int"),
    ({"window": (3,)}, ValueError, r"window: expected None or 2 ints >= 0.*got \(3,\)"),
    ({"window": (3, -1)}, ValueError, "window: expected None or 2 ints >= 0"),
    ({"window": (3, 2.0)}, TypeError, "window: expected None or 2 ints >= 0.*got float"),
    ({"scale": "1/d"}, TypeError, "scale: expected a number, got str '1/d'"),
    ({"scale": float("nan")}, ValueError, "scale: expected a number"),
    ({"scale": float("inf")}, ValueError, "scale: expected a finite number, got inf"),
    ({"causal": 1}, TypeError, "causal: expected a bool, got int"),
    ({"return_lse": None}, TypeError, "return_lse: expected a bool, got NoneType"),
    (
        {"method": "linear"}, ValueError,
        "method: expected one of 'auto', 'exact', 'polynomial', 'hybrid', got 'linear'",
    ),
    ({"coefficients": "chebyshev"}, ValueError, "coefficients: expected one of 'taylor'"),
    ({**POLYNOMIAL, "degree": 0}, ValueError, "degree: expected an int from 1 to 16, got 0"),
    ({**POLYNOMIAL, "degree": 2.0}, TypeError, "degree: expected an int from 1 to 16, got float"),
    ({"method": "exact", "degree": 2}, ValueError, 'degree: expected None with method="exact"'),
    ({"degree": 2}, ValueError, 'degree: expected None with method="auto" and no tol, got 2'),
    ({"tol": 0.0}, ValueError, "tol: expected a number > 0 or None, got 0.0"),
    ({"tol": "small"}, TypeError, "tol: expected a number, got str 'small'"),
    ({"method": "hybrid"}, ValueError, "window: expected two widths > 0, and causal=True, with"),
    (
        {"method": "hybrid", "causal": True, "window": (3, 3), "tol": 0.1}, ValueError,
        'tol: expected None with method="hybrid"; give degree, got 0.1',
    ),
    ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    (
        {"backend": "cuda"}, BackendUnavailable,
        "backend 'cuda' of sublimate.kronecker_attention cannot run .*has no CUDA kernel",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), CALLS)
def test_kronecker_attention(changes, error, message, calls):
    options = {"q": Q, "k1": K, "k2": K, "v1": V, "v2": V, **changes}
    with pytest.raises(error, match=message):
        kronecker_attention(**options)
    assert not calls


def test_head_dimensions_beyond_the_kernels():
    q, k = torch.randn(1, 1, 2, 129), torch.randn(1, 1, 3, 129)
    with pytest.raises(BackendUnavailable, match="head dimensions of at most 128, got 129"):
        kronecker_attention(q, k, k, k, k, backend="cpu")
    auto = kronecker_attention(q, k, k, k, k)
    assert torch.equal(auto, kronecker_attention(q, k, k, k, k, backend="reference"))


def test_an_odd_degree_is_refused_where_the_denominator_may_vanish():
    big, keys, values = 4 * Q, [K, K], [V, V]
    for degree in (1, 3, 5):
        with pytest.raises(ValueError, match=r"degree: expected an even number, as logits may"):
            polynomial_attention(big, keys, values, degree=degree)
        with pytest.raises(ValueError, match="the denominator, may vanish, got"):
            kronecker_attention(big, K, K, V, V, method="polynomial", degree=degree)
        small = 0.01 * Q
        assert polynomial_attention(small, keys, values, degree=degree).isfinite().all()


def test_a_tolerance_that_no_degree_reaches():
    message = (
        r"tol: no polynomial reaches 1e-06 on logits of magnitude up to \d.*degree 2: estimated .*"
        r'certified .*; tol=\S+ would do with degree \d; else use method="exact", a smaller scale, '
        "or normalised queries and keys"
    )
    with pytest.raises(ValueError, match=message):
        kronecker_attention(2 * Q, K, K, V, V, method="polynomial", tol=1e-6)
    with pytest.raises(ValueError, match=r"no polynomial reaches 1e-06 .*degree 2: estimated"):
        kronecker_attention(2 * Q, K, K, V, V, method="polynomial", tol=1e-6, degree=2)


def test_what_reads_the_data_needs_data():
    """On the device meta there are shapes only."""
    q, k, v = (t.to("meta") for t in (Q, K, V))
    message = "q: expected a tensor with values, got one on the device meta"
    for options in (
        {"tol": 0.1}, {"method": "polynomial", "degree": 3},
        {"method": "polynomial", "degree": 2, "return_info": True},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            kronecker_attention(q, k, k, v, v, **options)
    with pytest.raises(ValueError, match=message):
        choose(q, k, k, v, v, tol=0.1)
    with pytest.raises(ValueError, match=message):
        estimated_error(q, [k, k], [v, v])
    assert kronecker_attention(q, k, k, v, v).is_meta


def test_the_tolerance_that_would_do_does():
    """The message's number, rounded up to what it shows, is reached."""
    for size in (0.3, 0.5, 0.7, 1.1, 1.9):
        leaves = (size * Q, K, K, V, V)
        for degree in (2, 4, None):
            options = {"method": "polynomial", "degree": degree}
            with pytest.raises(ValueError, match="would do with degree") as told:
                kronecker_attention(*leaves, **options, tol=1e-9)
            tol, found = re.search(r"tol=(\S+) would do with degree (\d)", str(told.value)).groups()
            _, plan = kronecker_attention(*leaves, **options, tol=float(tol), return_info=True)
            assert plan.degree <= int(found)  # rounded up, a lower one may do


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q, K, [V, V]), TypeError, "keys: expected a list of tensors, one for each key set, got"),
        (
            (Q, [K], [V]),
            ValueError,
            r"keys: expected at least 2 key sets \(order 3\); order 2 is",
        ),
        ((Q, [K, K], [V]), ValueError, "values: expected one for each of 2 key sets, got 1"),
        ((Q, [K, K.double()], [V, V]), TypeError, r"keys\[1\]: expected the dtype of q"),
        ((Q, [K, K], [V, V[:, :, :2]]), ValueError, r"values\[1\]: expected shape \(2, 2, 6, 3\)"),
    ],
)
def test_lists(arguments, error, message, calls):
    functions = [polynomial_attention, estimated_error, lambda q, k, v: certificate(q, k)]
    if "values" in message:
        functions.pop()
    for function in functions:
        with pytest.raises(error, match=message):
            function(*arguments)
    assert not calls


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (MASK, TypeError, "masks: expected a list, one for each key set, or None, got Tensor"),
        ([MASK], ValueError, "masks: expected one for each of 2 key sets, got 1"),
        ([None, MASK.int()], TypeError, r"masks\[1\]: expected a bool tensor"),
    ],
)
def test_mask_lists(masks, error, message):
    for function in (
        lambda **o: certificate(Q, [K, K], **o),
        lambda **o: estimated_error(Q, [K, K], [V, V], **o),
        lambda **o: polynomial_attention(Q, [K, K], [V, V], **o),
    ):
        with pytest.raises(error, match=message):
            function(masks=masks)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (V, TypeError, "values: expected a list of tensors, one for each key set, got Tensor"),
        ([V], ValueError, "values: expected one for each of 2 key sets, got 1"),
        ([V[:, :, :4], V], ValueError, r"values\[0\]: expected the length of masks\[0\], 6, got 4"),
        (
            [V, V[..., :2]],
            ValueError,
            r"values\[1\]: expected the heads and dimension of values\[0",
        ),
    ],
)
def test_values_of_a_certificate(values, error, message):
    with pytest.raises(error, match=message):
        certificate(Q, [K, K], masks=[MASK, None]).output(values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"masks": MASK}, TypeError, "masks: expected a list, one for each key set, or None, got"),
        ({"masks": [MASK]}, ValueError, "masks: expected one for each of 2 key sets, got 1"),
        ({"masks": [None, MASK[:1]]}, ValueError, r"masks\[1\]: expected shape \(2, 6\)"),
        ({"window": (1, 2, 3)}, ValueError, "window: expected None or 2 ints >= 0"),
        ({"degree": None}, TypeError, "degree: expected an int from 1 to 16, got NoneType"),
        ({"degree": 17}, ValueError, "degree: expected an int from 1 to 16, got 17"),
    ],
)
def test_polynomial_attention(options, error, message):
    with pytest.raises(error, match=message):
        polynomial_attention(Q, [K, K], [V, V], **options)


def test_degrees_and_orders_beyond_the_kernels():
    small = [t[..., :2].clone() * 0.1 for t in (Q, K, V)]
    options = {"scale": 0.1, "backend": "cpu"}

    def call(sets, **more):
        return polynomial_attention(
            small[0], [small[1]] * sets, [small[2]] * sets, **options, **more
        )

    with pytest.raises(BackendUnavailable, match=r"it has degrees up to 12, got 14\. Would work"):
        call(2, degree=14)
    with pytest.raises(BackendUnavailable, match="it has orders 3 to 8, got 9"):
        call(8)
    assert ops.limits("triton", (2, 2), 4, ordered=True) == [
        "orders 3 to 3 with causality or a window, got 4"
    ]
    assert ops.limits("cpu", (2, 2), 4, ordered=True) == []


def test_choose_and_estimate():
    with pytest.raises(TypeError, match="tol: expected a number > 0, got NoneType"):
        choose(Q, K, K, V, V, tol=None)
    with pytest.raises(ValueError, match="rows: expected an int from 1"):
        choose(Q, K, K, V, V, tol=0.1, rows=0)
    with pytest.raises(ValueError, match="rows: expected an int from 1"):
        estimated_error(Q, [K, K], [V, V], rows=0)
    with pytest.raises(ValueError, match="degree: expected an int from 1 to 16, got 0"):
        certificate(Q, [K, K], degree=0)


def test_strassen():
    with pytest.raises(BackendUnavailable, match="has no CUDA kernel of its own"):
        strassen_attention(Q, K, K, V, V, backend="cuda")
    wide = Q.new_zeros(1, 1, 2, 129)
    with pytest.raises(BackendUnavailable, match="head dimensions of at most 128, got 129"):
        strassen_attention(*(wide,) * 5, backend="cpu")
    assert strassen_attention(*(wide,) * 5).shape == wide.shape
    with pytest.raises(ValueError, match="k1: expected shape"):
        strassen_attention(Q, K[..., :3], K, V, V)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embed_dim": 10}, ValueError, "embed_dim: expected a multiple of num_heads, 4, got 10"),
        ({"num_heads": 0}, ValueError, "num_heads: expected an int from 1"),
        ({"kv_heads": 3}, ValueError, "kv_heads: expected a divisor of num_heads, 4, got 3"),
        ({"order": 2}, ValueError, "order: expected an int from 3 to .*, got 2"),
        ({"window": (1,)}, ValueError, "window: expected None or 2 ints"),
        ({"method": "fast"}, ValueError, "method: expected one of"),
        ({"order": 4, "method": "exact"}, ValueError, 'method: expected "polynomial" with order 4'),
        ({"tol": -1.0}, ValueError, "tol: expected a number > 0"),
        (
            {"order": 4, "method": "polynomial", "tol": 0.1},
            ValueError,
            "tol: expected None with order 4; give degree, got 0.1",
        ),
        ({"method": "exact", "degree": 2}, ValueError, 'degree: expected None with method="exact"'),
        ({"degree": 2}, ValueError, 'degree: expected None with method="auto" and no tol, got 2'),
        ({"method": "hybrid"}, ValueError, 'window: expected two widths > 0 with method="hybrid"'),
        (
            {"method": "hybrid", "window": (2, 2), "tol": 0.1},
            ValueError,
            'tol: expected None with method="hybrid"; give degree, got 0.1',
        ),
        ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    ],
)
def test_module(options, error, message):
    with pytest.raises(error, match=message):
        KroneckerAttention(**{"embed_dim": 16, "num_heads": 4, **options})


def test_module_call():
    module = KroneckerAttention(16, 4)
    x = torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match=r"query: expected shape \(batch, length, 16\), got"):
        module(x[..., :8])
    with pytest.raises(
        ValueError, match=r"key: expected shape \(2, length, 16\), got \(3, 5, 16\)"
    ):
        module(x, torch.randn(3, 5, 16))
    with pytest.raises(ValueError, match=r"value: expected shape \(2, 7, 16\), got \(2, 5, 16\)"):
        module(x, torch.randn(2, 7, 16), x)
    with pytest.raises(ValueError, match="key: expected the device of query, cpu, got meta"):
        module(x, x.to("meta"))
    with pytest.raises(ValueError, match="need_weights: expected False"):
        module(x, need_weights=True)
    with pytest.raises(ValueError, match="attn_mask: expected None, or any with is_causal=True"):
        module(x, attn_mask=torch.zeros(5, 5))
    with pytest.raises(TypeError, match="key_padding_mask: expected a bool tensor, True where"):
        module(x, key_padding_mask=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="key_padding_mask: expected 0 and -inf only"):
        module(x, key_padding_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"key_padding_mask: expected shape \(2, 5\)"):
        module(x, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool))
