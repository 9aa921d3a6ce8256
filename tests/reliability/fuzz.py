"""The long campaign behind docs/reliability.md: the suite's generator, for as long as wanted.

    python tests/reliability/fuzz.py --seconds 500                     random bytes
    python tests/reliability/fuzz.py --seconds 500 --engine atheris    guided by coverage
    python tests/reliability/fuzz.py --native build/.../_C*.so         on a module of one's own

Bytes become calls by Hypothesis (``fuzz_one_input``), the same for both engines. Faults are told
apart by entry, exception and line, printed once each, and end the run with status 1. A crash ends
it at once; the entry at hand is then in --trace FILE. Prints counts, and with --json FILE writes
them.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # tests/, for reliability


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("random", "atheris"), default="random")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="entries whose name begins so")
    parser.add_argument("--native", help="use this file as sublimate._C")
    parser.add_argument("--trace", help="file that always names the entry at hand")
    parser.add_argument("--json", help="file for the counts")
    return parser.parse_args()


class Campaign:
    """Runs inputs through the entries and keeps the score."""

    def __init__(self, options: argparse.Namespace) -> None:
        from hypothesis import HealthCheck, given, settings
        from reliability.judge import Fault, judge
        from reliability.table import entries, strategy

        self.options = options
        self.end = time.monotonic() + options.seconds
        self.outcomes: Counter[str] = Counter()
        self.by_entry: Counter[str] = Counter()
        self.faults: dict[tuple[str, str, str], str] = {}
        self.trace = Path(options.trace) if options.trace else None
        self.targets: list[tuple[str, Callable[[bytes], Any]]] = []

        def target(found: Any) -> Callable[[bytes], Any]:
            @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
            @given(strategy(found))
            def run(arguments: dict[str, Any]) -> None:
                try:
                    self.outcomes[judge(found, arguments)] += 1
                except Fault as fault:
                    self.outcomes["fault"] += 1
                    key = (found.name, fault.what[:60], fault.place)
                    if key not in self.faults:
                        self.faults[key] = str(fault)
                        print(f"FAULT {fault}\n", flush=True)

            return run.hypothesis.fuzz_one_input  # type: ignore[attr-defined, no-any-return]

        for name, found in sorted(entries().items()):
            if name.startswith(options.only):
                self.targets.append((name, target(found)))

    def one(self, data: bytes) -> None:
        """The first two bytes pick the entry, the rest is its call."""
        if len(data) < 3:
            return
        name, run = self.targets[int.from_bytes(data[:2], "little") % len(self.targets)]
        if self.trace:
            self.trace.write_text(f"{name} {data.hex()}\n")
        faulthandler.dump_traceback_later(60, exit=True)  # a call that hangs
        if run(data[2:]) is not None:
            self.by_entry[name] += 1
        faulthandler.cancel_dump_traceback_later()
        if time.monotonic() > self.end:
            self.finish()

    def finish(self) -> None:
        """Prints the score and ends the process, as neither engine hands back control."""
        counts = {
            "engine": self.options.engine, "inputs": sum(self.by_entry.values()),
            "entries": len(self.by_entry), **self.outcomes, "distinct faults": len(self.faults),
            "least tried": min(self.by_entry.items(), key=lambda e: e[1], default=None),
        }  # fmt: skip
        print(json.dumps(counts), flush=True)
        if self.options.json:
            text = json.dumps({**counts, "by entry": dict(self.by_entry)}, indent=1)
            Path(self.options.json).write_text(text + "\n")
        sys.stdout.flush()
        os._exit(1 if self.faults else 0)  # libFuzzer would take an exception for a crash


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    if options.engine == "atheris":
        import atheris
        import torch.nn

        with atheris.instrument_imports(include=["sublimate"]):
            import sublimate  # noqa: F401
    import torch
    from sublimate import _native

    torch.set_num_threads(2)
    if options.native:
        _native.CPU = _native.Library("sublimate._C", "cpu", file=options.native)
    campaign = Campaign(options)
    generator = random.Random(options.seed)
    if options.engine == "atheris":
        # Inputs to begin with, some of each entry: from nothing, libFuzzer stays long with the
        # first few entries and calls of the fewest bytes. It adds those that reach new lines.
        corpus = Path(__file__).resolve().parents[2] / "build" / "fuzz"
        corpus.mkdir(parents=True, exist_ok=True)
        for i in range(len(campaign.targets)):
            for k in range(4):
                file = corpus / f"{i}-{k}"
                file.write_bytes(i.to_bytes(2, "little") + generator.randbytes(64 << (2 * k)))
        flags = ["-max_len=4096", f"-seed={options.seed or 1}", "-rss_limit_mb=0", "-len_control=0"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], campaign.one)
        atheris.Fuzz()
    while True:
        campaign.one(generator.randbytes(generator.choice((64, 256, 1024, 4096))))


if __name__ == "__main__":
    main()
