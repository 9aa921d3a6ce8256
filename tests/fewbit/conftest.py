"""Lanes: every body that takes ``lane`` or ``kernel`` runs on each backend there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from helpers import lanes
from helpers.lanes import Lane


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Number of kernel calls by backend ("cpu", "cuda", "triton") and by native op."""
    with lanes.counted_calls(monkeypatch) as counts:
        yield counts


def _on(request: pytest.FixtureRequest) -> Lane:
    lane: Lane = request.param
    if lane.emulated:
        request.getfixturevalue("emulated_cuda")
    return lane


@pytest.fixture(params=lanes.LANES, ids=lanes.lane_id)
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """Each backend in turn. Fails afterwards if another backend did its work."""
    lane = _on(request)
    counts = request.getfixturevalue("calls")
    yield lane
    ran = {name for name in ("cpu", "cuda", "triton") if counts[name]}
    assert ran == ({lane.backend} - {"reference"}), f"{lane.id}: kernels of {ran or 'none'} ran"


@pytest.fixture(params=lanes.KERNELS, ids=lanes.lane_id)
def kernel(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """Each compiled backend in turn; others may run beside it. Fails if it never ran."""
    lane = _on(request)
    counts = request.getfixturevalue("calls")
    yield lane
    assert counts[lane.backend] > 0, f"no kernel of {lane.id} ran"
