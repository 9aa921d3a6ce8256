"""``fuzz.py`` on CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

Builds the module once (minutes, kept in build/tests), for the baseline instruction set or with
--all-levels for each, and runs the campaign in a process with the sanitizers' runtimes first. Other
arguments are fuzz.py's. An access out of bounds ends the campaign with the sanitizer's report.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, for helpers

from helpers import native_build
from helpers.sanitizers import ADDRESS, runtimes


def main() -> int:
    arguments = sys.argv[1:]
    levels = "ON" if "--all-levels" in arguments else "OFF"
    with native_build.locked("asan") as folder:
        native_build.configure(
            folder, "-DSUBLIMATE_SANITIZE=address,undefined", "-DSUBLIMATE_WERROR=OFF",
            f"-DSUBLIMATE_MULTIVERSION={levels}",
        )  # fmt: skip
        native_build.build(folder, "_C")
    file = folder / f"_C{native_build.SUFFIX}"
    preload = runtimes(*ADDRESS)
    if preload is None:
        sys.exit("the compiler has no sanitizer runtimes (install libasan and libubsan)")
    env = {
        **os.environ,
        # What Python keeps until its end is no leak of ours; torch fills memory on purpose.
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    script = str(Path(__file__).with_name("fuzz.py"))
    command = [
        sys.executable,
        script,
        "--native",
        str(file),
        *(a for a in arguments if a != "--all-levels"),
    ]
    return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
