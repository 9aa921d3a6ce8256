"""Small calls of the Kronecker attention CPU kernels for cases.py, against float64.

Lengths lie around a block of queries (16 or 32), the tiles of 48 and 64 keys and of 32 rows, and
the sums of 64 keys; views begin off every alignment, in allocations that end where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from helpers import kronecker_kernels as K
from helpers.kronecker_cases import Variant, inputs
from helpers.kronecker_views import spread
from sublimate._native import kronecker_attention as N

WIDE = (torch.float32, torch.float64)
NARROW = (torch.float16, torch.bfloat16)
EXACT = (
    Variant("one of everything", n=1, heads=(1, 1), dims=(1, 1), batch=1),
    Variant("one key", n=33, lengths=(1, 65), heads=(2, 1), dims=(3, 5), batch=1),
    Variant("tiles", n=17, lengths=(47, 49), dims=(14, 17), batch=1),
    Variant("tiles and one", n=31, lengths=(65, 63), heads=(4, 2), dims=(16, 9), batch=2),
    Variant("widest", n=5, lengths=(3, 7), heads=(3, 1), dims=(128, 127), batch=1),
    Variant("causal", n=66, heads=(2, 1), dims=(7, 16), batch=1, causal=True),
    Variant("causal cross", n=49, lengths=(17, 70), dims=(5, 8), batch=1, causal=True),
    Variant("windows", n=67, heads=(3, 3), dims=(9, 4), batch=1, window=(1, 33), causal=True),
    Variant("window of one set", n=50, lengths=(64, 50), dims=(4, 4), batch=1, window=(0, 40)),
    Variant("padding", n=34, lengths=(37, 80), heads=(4, 1), dims=(12, 3), padding="both"),
    Variant("padding, windows", n=41, dims=(8, 6), padding="first", window=(7, 50), causal=True),
    Variant("rows without keys", n=37, dims=(6, 6), padding="rows", causal=True),
    Variant("a batch without keys", n=9, dims=(6, 6), padding="batch"),
)  # fmt: skip
#: (variant, lengths of the key sets, degree, windows)
SUMS = (
    (Variant("full", n=33, dims=(9, 24), heads=(4, 2)), (17, 130), 3, ()),
    (Variant("full, masked", n=65, dims=(31, 5), padding="both", batch=1), (63, 1), 2, ()),
    (Variant("order 4", n=70, dims=(5, 33), batch=1, padding="both"), (7, 30, 20), 4, ()),
    (Variant("order 5", n=5, dims=(3, 2), heads=(2, 1)), (3, 4, 5, 6), 2, ()),
    (Variant("degree 0", n=31, dims=(4, 8), batch=1), (17, 2), 0, ()),
    (Variant("degree 12", n=3, dims=(1, 2), batch=1), (17, 5), 12, ()),
    (Variant("causal pairs", n=65, dims=(9, 24), heads=(4, 2), causal=True, batch=1),
     (70, 63), 3, ()),
    (Variant("window pairs", n=63, dims=(4, 8), padding="both", batch=1), (63, 70), 1, (0, 3)),
    (Variant("prefixes", n=101, dims=(5, 16), heads=(4, 2), causal=True, batch=1),
     (101, 63), 2, ()),
    (Variant("prefixes, masked", n=66, dims=(3, 7), causal=True, padding="x", batch=1),
     (9, 70, 66), 3, (0, 9, 1)),
    (Variant("long windows", n=97, dims=(2, 5), batch=1), (7, 80, 99), 2, (0, 64, 40)),
)  # fmt: skip


def with_threads(count: int, check: Callable[[], None]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        check()
    finally:
        torch.set_num_threads(before)


def views(v: Variant, dtype: torch.dtype, form: str) -> None:
    """By position, with gaps of NaN between rows: the last element ends its allocation."""
    tensors = inputs(v, dtype)
    found = K.exact(v, [spread(t) for t in tensors], form=form)
    for name, f, due in zip(K.NAMES, found, K.exact(v, tensors, form=form), strict=True):
        assert torch.equal(f, due), f"{v.name}: {name}"


def cases(device: str) -> Iterator[Callable[[], None]]:
    assert device == "cpu", "on a GPU the family has Triton kernels only"
    for at, v in enumerate(EXACT):
        for dtype in (*WIDE, NARROW[at % 2]):
            for form in N.FORMS:
                size = 0.4 if form == "strassen" else 0.7
                check = partial(K.check_exact, v, dtype, size, form)
                yield partial(with_threads, 1 + at % 3, check)
        # Logits that need a running maximum.
        yield partial(K.check_exact, v, torch.float64, 4.0)
        yield partial(views, v, (*WIDE, *NARROW)[at % 4], tuple(N.FORMS)[at % 2])
    for at, (v, lengths, degree, window) in enumerate(SUMS):
        for dtype in (*WIDE, NARROW[at % 2]):
            sums = K.Sums(v, lengths, degree, dtype, window)
            yield partial(with_threads, 1 + at % 3, sums.check)
