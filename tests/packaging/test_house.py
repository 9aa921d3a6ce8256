"""House rules that a machine can read: length of files, what public docstrings say."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest
import sublimate

ROOT = Path(__file__).resolve().parents[2]
CODE = {".py", ".cpp", ".cu", ".h", ".cuh"}  # a stub (.pyi) is as long as its list
LONGEST = 500
FAMILIES = sorted(sublimate.backends())


def tracked():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        folders = ("python", "csrc", "kernels", "bench", "tests")
        return [p for folder in folders for p in (ROOT / folder).rglob("*")]
    return [ROOT / line for line in found.splitlines()]


def test_files_are_short():
    files = [p for p in tracked() if p.suffix in CODE and p.is_file() and not p.is_symlink()]
    assert len(files) > 100
    long = {str(p.relative_to(ROOT)): n for p in files
            if (n := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST}  # fmt: skip
    assert not long


def test_no_utils():
    named = [p for p in tracked() if re.search(r"(^|_)utils?($|_)|_v\d+$", p.stem)]
    assert not named


def public():
    for family in FAMILIES:
        module = importlib.import_module(f"sublimate.{family}")
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and not inspect.ismodule(thing):
                yield pytest.param(thing, id=f"{family}.{name}")


def told(thing, depth=2):
    """What help() says about it, with its module's text and that of functions it refers to."""
    own = inspect.getdoc(thing) or ""
    module = inspect.getmodule(thing)
    text = [own, module.__doc__ or ""]
    family = importlib.import_module(".".join(module.__name__.split(".")[:2]))
    named = re.findall(r"\b[Aa]s (?:in |for )?``(?:functional\.)?(\w+)``", own) if depth else ()
    text += [told(getattr(family, n), depth - 1)[1] for n in named if hasattr(family, n)]
    return own, "\n".join(text)


@pytest.mark.parametrize("thing", public())
def test_docstring(thing):
    own, whole = told(thing)
    assert own.strip(), "no docstring"
    first = own.strip().splitlines()[0]
    assert first.endswith((".", ":")), f"first line is no sentence: {first!r}"
    if inspect.isfunction(thing):
        parameters = [p for p in inspect.signature(thing).parameters if not p.startswith("_")]
        untold = [p for p in parameters if not re.search(rf"\b{re.escape(p)}\b", whole)]
        assert not untold, f"arguments not told: {untold}"
        assert "Raises" in whole or not parameters, "does not say what it raises"
