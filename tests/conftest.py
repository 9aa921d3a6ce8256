"""The frame of every test: a steady process, visible garbage, shared builds, the lane report."""

from __future__ import annotations

import os

# Two workers share the machine: a thread that waits gives its core away.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import lane_report, lanes, nan_fill, native_build
from helpers.lanes import Lane
from hypothesis import settings

nan_fill.install()
# The same examples everywhere, on any machine; a slow one is no failure.
settings.register_profile("sublimate", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sublimate")


def pytest_configure() -> None:
    # More than one, so that the parallel code runs, and the same number on every machine.
    torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lane_report.assign(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("lanes")
    for line in lane_report.lines(terminalreporter.stats):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    """Seeds torch, and fails a test that leaves the process other than it found it."""
    import sublimate

    torch.manual_seed(0)
    before = (sublimate.get_backend(), torch.get_default_dtype(), torch.get_num_threads())
    yield
    after = (sublimate.get_backend(), torch.get_default_dtype(), torch.get_num_threads())
    if after != before:
        sublimate.set_backend(before[0])
        torch.set_default_dtype(before[1])
        torch.set_num_threads(before[2])
        pytest.fail(f"the test left (backend, default dtype, threads) = {after}, not {before}")


@pytest.fixture(scope="session")
def emulated_cuda_file() -> Path:
    """The CUDA sources built as a host module against tests/cuda_emulator."""
    missing = native_build.missing_compiler()
    if missing:
        pytest.skip(missing)
    return native_build.emulated_module()


@pytest.fixture(scope="session")
def _emulated_library(emulated_cuda_file: Path) -> object:
    from sublimate import _native

    return _native.Library("sublimate._C_cuda_emulated", "cpu", file=emulated_cuda_file)


@pytest.fixture
def emulated_cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Backend "cuda" is the emulated module, and takes CPU tensors, while the test runs."""
    from sublimate import _backends, _native

    lane_report.join(request.node, "emulator")
    library = request.getfixturevalue("_emulated_library")
    with monkeypatch.context() as patch:
        patch.setattr(_native, "CUDA", library)
        _backends.forget()
        yield
    _backends.forget()


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
