"""The site builds without a warning, and what its pages show can be run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sublimate
import torch

ROOT = Path(__file__).resolve().parents[2]
#: Pages whose Python blocks run from the first to the last, in one namespace.
PAGES = ("README.md", "docs/index.md", "docs/backends.md")


def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {p.parent.name for p in tmp_path.rglob("index.html")}
    assert {"backends", "environment", "troubleshooting", "performance"} <= pages
    for family in sublimate.backends():
        page = (tmp_path / "api" / family / "index.html").read_text()
        missing = [n for n in getattr(sublimate, family).__all__ if n not in page]
        assert not missing, (family, missing)


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, capsys):
    found = blocks(page)
    assert found
    torch.manual_seed(0)
    names = {}
    for k, block in enumerate(found):
        exec(compile(block, f"{page}, block {k + 1}", "exec"), names)


def test_every_variable_is_documented():
    """What the sources read from the environment stands in docs/environment.md, and no more."""
    sources = [ROOT / "setup.py", *(ROOT / "python").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    read = re.compile(r"(?:environ(?:\.get\(|\[)|getenv\()\s*\"(SUBLIMATE_\w+)\"")
    used = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
    told = set(re.findall(r"`(SUBLIMATE_\w+)`", (ROOT / "docs/environment.md").read_text()))
    assert used == told


def test_messages_of_the_troubleshooting_page_exist():
    """Every message there has its fixed parts in a source."""
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "python").rglob("*.py"))
    plain = re.sub(r"\"\s*\n\s*f?\"|[{}]", "", sources)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    heads = re.findall(r"^\*\*(.*?)\*\*", page, re.M)
    messages = [m for head in heads for m in re.findall(r"`(.*?)`", head)]
    parts = [
        part.strip()
        for m in messages
        for part in re.split(r"\.\.\.|<\w+>|'cuda'|\(\)|sublimate\._C(?:_cuda)?|on cuda|\bcpu$", m)
    ]
    missing = [p for p in parts if len(p) > 12 and p not in plain]
    assert len(messages) >= 8 and not missing, missing
