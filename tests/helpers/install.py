"""Copies of the project and throwaway environments to install it into, away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.native_build import ROOT, run

#: What a tree without git (an unpacked sdist) must not carry along.
GENERATED = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "out", "*.egg-info", "__pycache__", "*.so", ".*_cache"
)


def copy_tree(target: Path) -> Path:
    """The project's own files, links as links: what git tracks or would track."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        shutil.copytree(ROOT, target, symlinks=True, ignore=GENERATED)
        return target
    for name in listed.stdout.splitlines():
        source, copy = ROOT / name, target / name
        if source.is_symlink() or source.exists():  # a deleted file may still be listed
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    return target


def environment(**extra: str) -> dict[str, str]:
    """This process's variables without ours and without PYTHONPATH, plus ``extra``.

    Builds are unoptimised, for one instruction set and without CUDA unless ``extra`` says
    otherwise: what is tested here is what gets packaged, not what the compiler makes of it.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SUBLIMATE_", "PYTHONPATH", "PYTEST_"))
    }
    defaults = {
        "SUBLIMATE_BUILD_CUDA": "0",
        "SUBLIMATE_BUILD_TYPE": "Debug",
        "SUBLIMATE_MULTIVERSION": "0",
        "CMAKE_BUILD_PARALLEL_LEVEL": "2",
        "PIP_NO_INDEX": "1",  # nothing may come from elsewhere
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return {**kept, **defaults, **extra}


class Room:
    """A virtual environment that sees this one's packages, this project excepted.

    The packages are reached through a .pth file; .pth files found there are not followed, so an
    editable installation of the project in the outer environment stays outside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)], env=environment())
        self.python = str(folder / "bin" / "python")
        (self.packages,) = folder.glob("lib/python*/site-packages")
        outer = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        (self.packages / "outer.pth").write_text("\n".join(outer))

    def install(self, what: Path, *arguments: str, **variables: str) -> str:
        """pip's output; nothing is downloaded, no dependency touched."""
        command = [self.python, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
        command += ["--ignore-installed", *arguments, str(what)]
        return run(command, env=environment(**variables), cwd=self.folder)

    def wheel(self, what: Path, into: Path, **variables: str) -> Path:
        """The wheel that pip builds of a folder or an sdist."""
        command = [self.python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        command += ["-w", str(into), str(what)]
        run(command, env=environment(**variables), cwd=self.folder)
        (wheel,) = into.glob("*.whl")
        return wheel

    def sdist(self, tree: Path, into: Path) -> Path:
        """The sdist that the build backend makes of a folder."""
        call = f"from setuptools import build_meta as b; b.build_sdist({str(into)!r})"
        into.mkdir(parents=True, exist_ok=True)
        run([self.python, "-c", call], env=environment(), cwd=tree)
        (sdist,) = into.glob("*.tar.gz")
        return sdist

    def ask(self, code: str, **variables: str) -> Any:
        """What ``code``, run away from any source tree, leaves in ``answer`` (by way of JSON)."""
        marked = f"{code}\nimport json; print('answer', json.dumps(answer))"
        done = subprocess.run(
            [self.python, "-c", marked],
            env=environment(**variables),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.rpartition("answer ")[2])
