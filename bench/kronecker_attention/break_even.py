"""Times of exact and polynomial attention by length: the table ``method="auto"`` is fitted to.

    python -m bench.kronecker_attention.break_even DIM >> bench/kronecker_attention/break_even.csv

Forward, full, fp32, one batch, 4 heads, two threads; the least of several runs, as the table says
what the methods cost and not what else the machine did. A method ends where a run would take
seconds.
"""

from __future__ import annotations

import sys
import time

import torch
from sublimate.kronecker_attention import kronecker_attention

HEADS, THREADS = 4, 2
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
#: Milliseconds after which the next length is not tried, and milliseconds for one entry.
_LONGEST, _TIME = {0: 330, 1: 1300, 2: 1300, 3: 1300, 4: 400}, 800


def least_ms(n: int, dim: int, degree: int) -> float:
    """Of one forward; degree 0: exact."""
    draw = torch.Generator().manual_seed(0)
    sizes = (0.3, 0.3, 0.3, 1.0, 1.0)
    leaves = [torch.randn(1, HEADS, n, dim, generator=draw) * s for s in sizes]
    options = {"method": "polynomial", "degree": degree} if degree else {"method": "exact"}
    taken: list[float] = []
    with torch.no_grad():
        while len(taken) < 3 or (sum(taken) < _TIME and len(taken) < 40):
            start = time.perf_counter()
            kronecker_attention(*leaves, backend="cpu", **options)
            taken.append(1e3 * (time.perf_counter() - start))
            if taken[-1] > _TIME and len(taken) > 1:
                break
    return min(taken)


def main(dim: int) -> None:
    torch.set_num_threads(THREADS)
    for degree in range(5):
        last = 0.0
        for n in LENGTHS:
            if last > _LONGEST[degree]:
                break
            last = least_ms(n, dim, degree)
            print(f"{dim},{n},{degree},{last:.4g}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
