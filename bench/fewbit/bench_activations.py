"""The few-bit CPU cases, one benchmark per case, provider and mode; fixed rounds."""

from __future__ import annotations

import pytest

from bench.fewbit.cases import cases
from bench.harness.benchmark import QUICK, measure, pair_id, pairs, prepare
from bench.harness.case import MODES


@pytest.fixture(scope="module", params=pairs(cases(QUICK)), ids=pair_id)
def prepared(request):
    return prepare(request.param)


@pytest.mark.parametrize("mode", MODES)
def bench_activation(benchmark, prepared, mode, threads):
    measure(benchmark, prepared, mode, threads)
