"""The Kronecker attention CPU cases, one benchmark per case, provider and mode; few rounds, as a
competitor's step takes seconds."""

from __future__ import annotations

import pytest

from bench.harness.benchmark import QUICK, measure, pair_id, pairs, prepare
from bench.harness.case import MODES
from bench.kronecker_attention.cases import cases


@pytest.fixture(scope="module", params=pairs(cases(QUICK)), ids=pair_id)
def prepared(request):
    return prepare(request.param)


@pytest.mark.parametrize("mode", MODES)
def bench_attention(benchmark, prepared, mode, threads):
    measure(benchmark, prepared, mode, threads, rounds=3)
