"""The lane report, run by pytest inside pytest, with and without workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import lane_report

TESTS = Path(__file__).parents[1]

CONFTEST = """
import pytest
from helpers import lane_report

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: x")
    config.addinivalue_line("markers", "lane(name): x")

def pytest_collection_modifyitems(items):
    lane_report.assign(items)

@pytest.fixture
def emulated(request):
    lane_report.join(request.node, "emulator")

def pytest_terminal_summary(terminalreporter):
    for line in lane_report.lines(terminalreporter.stats):
        terminalreporter.write_line("> " + line)
"""
FILES = {
    "test_plain.py": """
import pytest
def test_in_no_lane(): pass
def test_by_fixture(emulated): pass
def test_by_fixture_too(request): request.getfixturevalue("emulated")
@pytest.mark.lane("nvcc", "sanitizers")
def test_by_marker(): pass
@pytest.mark.gpu
def test_gpu(): raise AssertionError("ran without a GPU")
""",
    "test_triton_aot.py": """
import pytest
pytest.skip("no such compiler", allow_module_level=True)
def test_a(): pass
""",
    "packaging/test_wheel.py": """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.fixture
def broken(): raise RuntimeError
def test_errs(broken): pass
def test_cannot(): pytest.skip("no wheel at hand")
""",
    "test_wrong.py": """
import pytest
@pytest.mark.lane("nowhere")
def test_lost(): pass
""",
}


def summary(folder: Path, *arguments: str) -> tuple[dict[str, str], str]:
    for name, text in {"conftest.py": CONFTEST, **FILES}.items():
        path = folder / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = dict(os.environ, PYTHONPATH=str(TESTS), CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    found = dict(re.findall(r"^> (\S+(?: \w+)?)  +(.*)$", done.stdout, re.MULTILINE))
    return found, done.stdout + done.stderr


@pytest.mark.parametrize("workers", [[], ["-n", "2", "--dist", "loadfile"]], ids=["one", "xdist"])
def test_summary(tmp_path, workers):
    lines, output = summary(tmp_path, "--ignore=tests/test_wrong.py", *workers)
    assert set(lines) == set(lane_report.NAMES), output
    assert lines["emulator"] == "ran      2 passed"
    assert lines["nvcc"] == lines["sanitizers"] == "ran      1 passed"
    assert lines["triton AOT"] == "did not  no such compiler"
    assert lines["triton interpreter"].startswith("did not  ")
    assert lines["GPU"].startswith("did not  torch finds no CUDA device")
    assert lines["packaging"] == "ran      1 passed, 2 failed, 1 skipped (no wheel at hand)"


def test_unknown_lane_is_refused(tmp_path):
    _, output = summary(tmp_path, "tests/test_wrong.py")
    assert "no such lane: 'nowhere'" in output


def test_real_files_have_their_lane():
    """The patterns still meet the files they were written for."""
    for name, pattern in (
        ("triton AOT", "*/test_triton_aot.py"),
        ("triton interpreter", "*/test_triton_interpreter.py"),
        ("nvcc", "packaging/test_cuda_build.py"),
        ("packaging", "packaging/test_install.py"),
    ):
        files = list(TESTS.glob(pattern))
        assert files, pattern
        assert all(name in lane_report.of_path(str(f)) for f in files)
    assert lane_report.of_path("tests/packaging/test_cuda_build.py::test_x[a]") == ["nvcc"]
    assert lane_report.of_path("tests/fewbit/test_reference.py") == []
