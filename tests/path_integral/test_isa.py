"""The instruction-set levels of the CPU kernels agree with one another; the lowest, and by
test_kernels.py the highest, with the reference.

A level is picked once, when the module loads, so each runs in a process of its own
(helpers/path_isa_worker.py), where the lowest fails if a kernel is off.
"""

from __future__ import annotations

import pytest
import torch
from helpers import isa_levels
from sublimate import _native

pytestmark = pytest.mark.skipif(
    _native.CPU.reason() is not None, reason=f"no CPU module: {_native.CPU.reason()}"
)


def test_every_level(tmp_path):
    found = isa_levels.run("path_isa_worker", tmp_path)
    assert found["base"][0] == "base"
    base = found["base"][1]
    for level, (_, results) in found.items():
        assert results.keys() == base.keys() and len(base) > 100
        for key, value in results.items():
            # Fused or not: a rounding of a term's size at each of at most ten points.
            unit = torch.finfo(value.dtype).eps
            size = float(base[key].double().abs().nan_to_num(0, 0, 0).max()) if value.numel() else 0
            torch.testing.assert_close(
                value, base[key], rtol=0, atol=16 * unit * (size + 8), equal_nan=True,
                msg=lambda text, key=key, level=level: f"{level}, {key}: {text}",
            )  # fmt: skip
