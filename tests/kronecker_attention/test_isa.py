"""Every instruction-set level of the CPU module, held to float64 (helpers/kronecker_isa_worker.py).

A level is picked once, when the module loads, so each runs in a process of its own.
"""

from __future__ import annotations

from helpers import isa_levels
from helpers.isa_levels import LEVELS


def test_every_level(tmp_path):
    found = isa_levels.run("kronecker_isa_worker", tmp_path)
    assert set(found) == set(LEVELS) and found["base"][0] == "base"
    for isa, results in found.values():
        assert isa in LEVELS and set(results.values()) == {7} and len(results) == 13
