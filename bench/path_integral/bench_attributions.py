"""The path-integral CPU cases, one benchmark per case, provider and mode."""

from __future__ import annotations

import pytest

from bench.harness.benchmark import QUICK, measure, pair_id, pairs, prepare
from bench.path_integral.cases import cases


@pytest.fixture(scope="module", params=pairs(cases(QUICK)), ids=pair_id)
def prepared(request):
    return prepare(request.param)


@pytest.mark.parametrize("mode", ["fwd", "bwd"])
def bench_path(benchmark, prepared, mode, threads):
    if mode not in prepared.case.modes:
        pytest.skip("the case has no backward of its own")
    measure(benchmark, prepared, mode, threads, rounds=5)
