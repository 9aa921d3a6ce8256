"""Sizes, strides, alignment and the memory next to ours; over 2**31 elements."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
import torch
from helpers.fewbit_cases import (
    DTYPES,
    code_of,
    default_tables,
    exact_product,
    odd_tables,
    packed_of,
    public,
    samples,
    truth_of,
    upstream,
    variant_id,
)
from helpers.lanes import CPU, CUDA_EMULATED, GPU
from helpers.parity import assert_parity, assert_same_bits
from sublimate import _native, fewbit
from sublimate.fewbit import reference as R
from torch import Tensor

ops = torch.ops.sublimate
BITS = 3


def check(lane, x: Tensor, grad: Tensor, name: str = "silu") -> tuple[Tensor, Tensor]:
    """One call on views as they are given (of whatever strides, on the lane's device)."""
    bits = BITS if name == "silu" else 1
    cx, cg = x.detach().cpu(), grad.detach().cpu()
    leaf = x.detach().requires_grad_()
    y = public(name)(leaf, bits=bits, backend=lane.backend)
    borders, codes, levels = default_tables(name, (), bits, x.dtype)
    code = code_of(name, (), cx, borders, codes)
    eager = torch.nn.functional.silu(cx) if name == "silu" else torch.relu(cx)
    assert_parity(y, truth_of(name, (), cx), eager) if lane.backend != "reference" else (
        assert_same_bits(y, eager)
    )
    assert y.stride() == torch.empty_like(x).stride() or x.numel() == 0
    order = R.dense_order(cx)
    assert_same_bits(packed_of(y), R.pack(R.flatten(code, order), bits))
    (dx,) = torch.autograd.grad(y, leaf, grad)
    assert_same_bits(dx, exact_product(code, levels, cg))
    assert dx.numel() == 0 or (dx != 0).any()
    return y, dx


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1021, 4099])
def test_sizes(lane, n, dtype):
    x = lane.put(samples(n, dtype, odd=False) + 0.01)
    for name in ("silu", "relu"):
        check(lane, x.abs() if name == "relu" else x, lane.put(upstream(n, dtype)), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_more_than_one_thread(lane, dtype):
    """Above the grain of a thread, at a length that no block divides."""
    n = 70_001
    check(lane, lane.put(samples(n, dtype)), lane.put(upstream(n, dtype)))


@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1, 1), (3, 0, 5), (2, 3, 4), (5, 1, 37), (2, 3, 4, 5)]
)
def test_shapes(lane, shape):
    x = lane.put(samples(shape, torch.float32, odd=False))
    y, dx = check(lane, x, lane.put(upstream(shape, torch.float32)))
    assert y.shape == dx.shape == shape


def _sliced(x: Tensor) -> Tensor:
    return x[::2, 1:-1, ::3]


#: Ways to take a view, from a dense (8, 9, 10) tensor.
VIEWS = {
    "transposed": lambda x: x.transpose(0, 2),
    "permuted": lambda x: x.permute(1, 2, 0),
    "sliced-with-holes": _sliced,
    "sliced-and-transposed": lambda x: _sliced(x).transpose(1, 2),
    "one-column": lambda x: x[:, 3, 3],
    "flipped": lambda x: x.flip(1),
    "offset": lambda x: x.reshape(-1)[1:701],
    "diagonal": lambda x: x.diagonal(dim1=0, dim2=1),
    "expanded": lambda x: x[:, :1].expand(8, 9, 10),
    "expanded-scalar": lambda x: x[0, 0, :1].expand(65),
    "overlapping": lambda x: x.reshape(-1).as_strided((50, 30), (7, 1)),
    "unfolded": lambda x: x.reshape(-1).unfold(0, 33, 5),
    "empty-sliced": lambda x: x[:0, 1:-1, ::2],
    "empty-expanded": lambda x: x[:1, 3:3, :1].expand(8, 0, 10),
    "size-one-strides": lambda x: x.reshape(-1).as_strided((1, 40, 1), (7, 2, 999)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("view", VIEWS)
def test_views(lane, view, dtype):
    """The input a view; the gradient dense, then a view of the same kind."""
    take = VIEWS[view]
    x = take(lane.put(samples((8, 9, 10), dtype)))
    check(lane, x, lane.put(upstream(x.shape, dtype)))
    check(lane, x, take(lane.put(upstream((8, 9, 10), dtype))))
    check(lane, lane.put(samples(x.shape, dtype)), take(lane.put(upstream((8, 9, 10), dtype))))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_channels_last(lane, dtype):
    """The output keeps the layout, and a gradient of either layout meets the right elements."""
    x = lane.put(samples((2, 5, 3, 7), dtype)).to(memory_format=torch.channels_last)
    grad = lane.put(upstream((2, 5, 3, 7), dtype))
    for g in (grad, grad.to(memory_format=torch.channels_last), grad[:, :1].expand_as(x)):
        y, dx = check(lane, x, g)
        assert y.is_contiguous(memory_format=torch.channels_last)
        if lane.backend != "reference":  # whose gradient has the layout of the one that comes in
            assert dx.is_contiguous(memory_format=torch.channels_last)
    volume = lane.put(samples((2, 3, 4, 5, 2), dtype)).to(memory_format=torch.channels_last_3d)
    y, _ = check(lane, volume, lane.put(upstream(volume.shape, dtype)))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
def test_gradients_with_zero_strides(lane, dtype):
    """What .sum() and .mean() send back: one number, expanded over everything."""
    x = lane.put(samples((6, 11), dtype, odd=False)).requires_grad_()
    borders, codes, levels = default_tables("silu", (), BITS, dtype)
    due = levels[R.encode(x.detach().cpu(), borders, codes)]
    fewbit.silu(x, backend=lane.backend).sum().backward()
    assert_same_bits(x.grad, due.to(dtype))
    x.grad = None
    (fewbit.silu(x, backend=lane.backend) * 2).sum(0)[3].backward()
    column = torch.zeros_like(due)
    column[:, 3] = 2 * due[:, 3]
    assert_same_bits(x.grad + 0.0, column.to(dtype))
    row = lane.put(upstream((1, 11), dtype)).expand(6, 11)
    check(lane, x, row)
    check(lane, x, lane.put(upstream((6, 1), dtype)).expand(6, 11))


def test_lazy_conjugates_and_negations(lane):
    """Real views of complex tensors carry a sign that only torch knows of."""
    z = torch.view_as_complex(samples((40, 2), torch.float32, odd=False))
    for x in (lane.put(z).conj().imag, torch._neg_view(lane.put(samples(40, torch.float32)))):
        assert x.is_neg()
        check(lane, x, lane.put(upstream(40, torch.float32)))
        y = fewbit.silu(lane.put(samples(40, torch.float32)).requires_grad_(), backend=lane.backend)
        assert y.requires_grad
    x = lane.put(samples(40, torch.float32, odd=False))
    grad = torch._neg_view(lane.put(upstream(40, torch.float32)))
    check(lane, x, grad)


def test_inference_and_subclasses(lane):
    """Inference tensors and parameters go through; a parameter gets its gradient."""
    with torch.inference_mode():
        x = lane.put(samples(70, torch.float32, odd=False))
        y = fewbit.gelu(x, backend=lane.backend)
    assert_parity(y, torch.nn.functional.gelu(x.cpu().double()), torch.nn.functional.gelu(x.cpu()))
    p = torch.nn.Parameter(lane.put(samples(70, torch.float32, odd=False)))
    fewbit.gelu(p, backend=lane.backend).sum().backward()
    assert p.grad.count_nonzero() == 70


# -------------------------------------------------------------------------- the memory next to ours

SENTINEL = 123.5


def _room(n: int, dtype: torch.dtype, offset: int) -> tuple[Tensor, Tensor]:
    """(whole, view of n elements at an offset), everything a sentinel."""
    value = SENTINEL if dtype.is_floating_point else -123456789
    whole = torch.full((n + 64,), value, dtype=dtype)
    return whole, whole[offset : offset + n]


def _untouched(whole: Tensor, offset: int, n: int) -> bool:
    value = SENTINEL if whole.is_floating_point() else -123456789
    outside = torch.cat([whole[:offset], whole[offset + n :]])
    return bool((outside == value).all())


@pytest.fixture(params=[CPU, CUDA_EMULATED], ids=lambda lane: lane.id)
def native(request):
    if request.param.emulated:
        request.getfixturevalue("emulated_cuda")
    return request.param.backend


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize("n", [1, 7, 32, 33, 77, 512, 521, 1021])
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_writes_stay_inside(native, offset, n, dtype):
    """Inputs and outputs between sentinels, aligned to their element and no further."""
    tables = borders, codes, levels = odd_tables(BITS, 7, dtype)
    x, grad = samples(n, dtype), upstream(n, dtype)
    rooms = {
        "x": _room(n, dtype, offset),
        "y": _room(n, dtype, offset),
        "grad": _room(n, dtype, offset),
        "dx": _room(n, dtype, offset),
        "packed": _room(R.words(n, BITS), torch.int32, offset),
    }
    rooms["x"][1].copy_(x)
    rooms["grad"][1].copy_(grad)
    view = {name: room[1] for name, room in rooms.items()}
    mish = list(R.FUNCTIONS).index("mish")
    _native.fewbit.fwd(
        native, view["x"], view["y"], view["packed"], *tables, mish, 0.0, 0.0, BITS, None
    )
    _native.fewbit.bwd(native, view["grad"], view["packed"], levels, view["dx"], BITS)
    for name, (whole, inside) in rooms.items():
        assert _untouched(whole, offset, inside.numel()), f"{name}: written outside"
    code = R.encode(x, borders, codes)
    assert_same_bits(view["x"], x, "x is read only")
    assert_same_bits(view["grad"], grad, "grad is read only")
    assert_same_bits(view["packed"], R.pack(code, BITS))
    assert_same_bits(view["dx"], exact_product(code, levels, grad))
    mish_of = torch.nn.functional.mish
    assert_parity(view["y"], mish_of(x.double()), mish_of(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=variant_id)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (5, 13), (3, 32), (17, 31)])
@pytest.mark.parametrize("keep", ["up", "gate"])
def test_gated_writes_stay_inside(native, keep, rows, inner, dtype):
    n, offset = rows * inner, 3
    borders, codes, levels = odd_tables(BITS, 7, dtype)
    names = ("gate", "up", "y", "dy", "dgate", "dup")
    rooms = {name: _room(n, dtype, offset) for name in names}
    rooms["packed"] = _room(R.words(n, BITS), torch.int32, offset)
    view = {k: v if k == "packed" else v.view(rows, inner) for k, (_, v) in rooms.items()}
    for k, name in enumerate(("gate", "up", "dy")):
        view[name].copy_(samples((rows, inner), dtype, seed=k, odd=False))
    scale = R.row_scale(view["up"]) if keep == "gate" else None
    silu = list(R.FUNCTIONS).index("silu")
    _native.fewbit.gated_fwd(
        native, view["gate"], view["up"], view["y"], view["packed"], borders, codes, silu, BITS,
        scale, inner,
    )  # fmt: skip
    kept = view["up"] if keep == "up" else view["gate"]
    _native.fewbit.gated_bwd(
        native, view["dy"], kept, view["packed"], levels, levels, scale, inner, silu,
        view["dgate"], view["dup"], BITS,
    )  # fmt: skip
    for name, (whole, inside) in rooms.items():
        assert _untouched(whole, offset, inside.numel()), f"{name}: written outside"
        assert name == "packed" or not (inside == SENTINEL).any(), f"{name}: not written"


def test_inputs_are_not_written(lane):
    """A forward and a backward leave x and the gradient as they were."""
    x, grad = lane.put(samples(700, torch.float16)), lane.put(upstream(700, torch.float16))
    before = x.clone(), grad.clone()
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(fewbit.gelu(leaf, backend=lane.backend), leaf, grad)
    assert_same_bits(x, before[0])
    assert_same_bits(grad, before[1])


def test_backward_twice(lane):
    """retain_graph: the codes survive, and both gradients are the same bits."""
    x = lane.put(samples(700, torch.float32)).requires_grad_()
    grad = lane.put(upstream(700, torch.float32))
    y = fewbit.gelu(x, backend=lane.backend)
    (first,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, grad)
    assert_same_bits(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, x, grad)


def test_changing_x_afterwards_is_harmless(lane):
    """Codes are all that is kept: x may be overwritten between forward and backward."""
    x = lane.put(samples(300, torch.float32, odd=False))
    leaf = x.clone().requires_grad_()
    (due,) = torch.autograd.grad(fewbit.gelu(leaf, backend=lane.backend).sum(), leaf)
    leaf = x.clone().requires_grad_()
    hidden = leaf * 1
    y = fewbit.gelu(hidden, backend=lane.backend)
    with torch.no_grad():
        hidden.zero_()
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    assert_same_bits(dx, due)


# ---------------------------------------------------------------------------------- over 2**31


class Repeated:
    """Address space of n elements that repeats one small piece of memory, the tail by itself.

    Every piece of the range maps the same pages, so the kernel's address arithmetic runs over all n
    elements while only ``period`` of them, and the tail, take memory. An index that wraps at 2**31
    leaves the range (and the process dies) or misses the tail.
    """

    def __init__(self, n: int, period: int, dtype: torch.dtype) -> None:
        size = torch.empty(0, dtype=dtype).element_size()
        self.bytes, self.piece = n * size, period * size
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc = libc
        whole = -(-self.bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptors = [os.memfd_create("piece"), os.memfd_create("tail")]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        self.address = self._mmap(None, whole, 0, flags, -1)
        self.length = whole
        both, fixed = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10  # MAP_FIXED
        os.ftruncate(self.descriptors[0], self.piece)
        full = self.bytes // self.piece * self.piece
        for at in range(0, full, self.piece):
            self._mmap(self.address + at, self.piece, both, fixed, self.descriptors[0])
        os.ftruncate(self.descriptors[1], whole - full)
        self._mmap(self.address + full, whole - full, both, fixed, self.descriptors[1])
        buffer = (ctypes.c_char * self.bytes).from_address(self.address)
        self.tensor = torch.frombuffer(buffer, dtype=dtype)

    def _mmap(self, address, length, protection, flags, descriptor):  # type: ignore[no-untyped-def]
        result = self.libc.mmap(address, length, protection, flags, descriptor, 0)
        assert result not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
        return result

    def close(self) -> None:
        del self.tensor
        self.libc.munmap(self.address, self.length)
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.mark.slow
def test_over_two_to_the_31_elements():
    """Forward and backward of 2**31 + 72 elements on the CPU: codes, values and tail are right."""
    period, tail, bits = 2**21, 72, 1
    n = 2**31 + tail
    spaces = [Repeated(n, period, torch.bfloat16) for _ in range(2)]
    words = Repeated(R.words(n, bits), period // 32 * bits, torch.int32)
    x, y = (s.tensor for s in spaces)
    packed = words.tensor
    assert x.numel() == y.numel() == n > 2**31
    x[:period] = samples(period, torch.bfloat16, odd=False)
    x[-tail:] = samples(tail, torch.bfloat16, seed=1, odd=False)
    y[:period] = packed[: period // 32] = 77
    y[-tail:] = packed[-3:] = 77
    none, code = torch.empty(0), torch.zeros(1, dtype=torch.uint8)
    levels = torch.tensor([0.25, 1.5])
    relu = list(R.FUNCTIONS).index("relu")
    _native.fewbit.fwd("cpu", x, y, packed, none, code, levels, relu, 0.0, 0.0, bits, None)
    for part, at in ((slice(0, period), 0), (slice(n - tail, n), n - tail)):
        positive = x[part] > 0
        assert_same_bits(y[part], torch.relu(x[part]))
        expected = R.pack(positive, bits)
        assert_same_bits(packed[at // 32 : at // 32 + expected.numel()], expected)
    grad = x  # its pages repeat as the words' do, so every write to a page of dx is the same
    y[:period] = 88
    y[-tail:] = 88
    due = exact_product((grad[-tail:] > 0).long(), levels, grad[-tail:])
    _native.fewbit.bwd("cpu", grad, packed, levels, y, bits)
    assert_same_bits(y[-tail:], due)
    assert_same_bits(y[:period], exact_product((grad[:period] > 0).long(), levels, grad[:period]))
    del x, y, grad, packed
    for space in (*spaces, words):
        space.close()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not GPU, reason="needs a CUDA device with 16 GB; runs in `make gpu`")
def test_over_two_to_the_31_elements_gpu():
    """The same on a GPU, in real memory: 4.3 GB for each of x, y and dx."""
    n, bits = 2**31 + 72, 1
    for lane in GPU:
        x = torch.ones(n, dtype=torch.bfloat16, device="cuda")
        x[-72:] = lane.put(samples(72, torch.bfloat16, odd=False))
        none = torch.empty(0, device="cuda")
        code = torch.zeros(1, dtype=torch.uint8, device="cuda")
        levels = torch.tensor([0.25, 1.5], device="cuda")
        y, packed = ops.fewbit_fwd(
            x, none, code, levels, None, "relu", 0.0, 0.0, bits, lane.backend
        )
        assert torch.equal(y, torch.relu(x))
        del y
        dx = ops.fewbit_bwd(x, packed, levels, [1], bits, lane.backend)
        assert (dx[:-72] == 1.5).all()
        assert_same_bits(
            dx[-72:].cpu(),
            exact_product((x[-72:].cpu() > 0).long(), levels.cpu(), x[-72:].cpu()),
        )
        del x, dx, packed
