"""``python -m bench.multicut.once KIND N PROVIDER``: one call of a provider too slow for rounds.

Appends its row to the CSV of the device: one sample, without a warm-up; ``peak_bytes`` is by how
much the resident set of this process grew, data included that no allocator of torch sees.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import torch

from bench.harness import ceilings, record
from bench.multicut.cases import KINDS, D, best_known, excess, mixture, providers


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.multicut.once")
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("n", type=int)
    parser.add_argument("provider")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, (sigma, alpha) = options.n, KINDS[options.kind]
    found = {p.name: p for p in providers(n, alpha, "cpu", every=True)}
    provider = found[options.provider]
    forward = provider.make()
    forward(*mixture(300, sigma))  # imports, code, threads
    (x,) = mixture(n, sigma)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = forward(x)
    ms = 1e3 * (time.perf_counter() - start)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    above = excess(alpha, best_known(options.kind, n), result, x)
    ceiling = ceilings.measure("cpu", torch.float32, n * D, quick=False)
    flops = n * n * (D + 1)
    least, bound = ceiling.roofline_ms(4 * n * D, flops)
    row = {
        **record.environment("cpu"),
        "case": f"multicut/default/{options.kind}/float32/{n}x{D}/cpu",
        "family": "multicut",
        "op": "dense_multicut",
        "bits": 0,
        "dtype": "float32",
        "elements": n * D,
        "mode": "fwd",
        "provider": provider.name,
        "allocator": "cold",
        "samples": 1,
        **{f"p{q}_ms": f"{ms:.6g}" for q in (20, 50, 80)},
        "peak_bytes": grown,
        "saved_bytes": 0,
        "bytes_moved": 4 * n * D,
        "flops": flops,
        "copy_gbs": f"{ceiling.copy / 1e9:.4g}",
        "matmul_gflops": f"{ceiling.matmul / 1e9:.4g}",
        "roofline_ms": f"{least:.6g}",
        "bound": bound,
        "fraction": f"{least / ms:.4g}",
        "gradient_error": f"{above:.4g}",
        "parity": "peer" if provider.peer else "pass",
        "note": "one call; peak: resident set",
    }
    record.append(record.RESULTS / f"{record.slug(row['device'])}.csv", [row])
    print(f"{row['case']} {provider.name}: {ms / 1e3:.2f} s, {above:.3g}, {grown / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
