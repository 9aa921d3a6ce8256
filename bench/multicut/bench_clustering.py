"""The dense multicut CPU cases, one benchmark per case and provider; few rounds, as a call takes up
to seconds."""

from __future__ import annotations

import pytest

from bench.harness.benchmark import QUICK, measure, pair_id, pairs, prepare
from bench.multicut.cases import cases


@pytest.fixture(scope="module", params=pairs(cases(QUICK)), ids=pair_id)
def prepared(request):
    return prepare(request.param)


def bench_clustering(benchmark, prepared, threads):
    measure(benchmark, prepared, "fwd", threads, rounds=3)
