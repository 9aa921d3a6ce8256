"""Cases of the randomized linear kernels for cases.py, called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from helpers import sketch_kernels as K

#: (rows, columns, k): around warps, packs and tiles; one row, one output, more outputs than rows.
SHAPES = ((1, 1, 1), (33, 37, 13), (67, 131, 70), (130, 16, 3), (6, 5, 9), (70, 40, 1))


def cases(device: str) -> Iterator[Callable[[], object]]:
    kernels = K.native("cuda", device)

    def project(*arguments: object) -> Callable[[], object]:
        return lambda: K.check_project(kernels, *arguments)  # type: ignore[arg-type]

    for dtype in K.DTYPES:
        for sketch in (*K.DENSE, *K.SPARSE):
            for i, (n, columns, k) in enumerate(SHAPES):
                x = K.numbers((n, columns), dtype)
                yield project(x if i % 2 else K.strided(x, pad=i, offset=i), sketch, k)
        yield project(K.strided(K.numbers((1030, 17), dtype)), "srht", 300)
        for n, columns, k in ((1, 1, 1), (67, 40, 300), (9, 300, 4)):
            x = K.numbers((n, columns), dtype)
            index = (torch.arange(k) * 7 % n).to(torch.int32)
            scale = torch.rand(k, dtype=torch.float64).to(K.R.accumulator(dtype))
            yield lambda x=x, i=index, s=scale: K.check_gather(kernels, K.strided(x), i, s)
            yield lambda x=x, i=index: K.check_gather(kernels, x, i, None)
        for rows, length in ((1, 1), (70, 3), (5, 37), (33, 64), (2, 1000), (3, 1025)):
            x = K.strided(K.numbers((rows, length), dtype))
            yield lambda x=x: K.check_hadamard(kernels, x, 0.37)
    for dtype in K.DTYPES:
        x = K.strided(K.numbers((1, 2**15 + 3), dtype))
        yield lambda x=x: K.check_hadamard(kernels, x, 0.37)
