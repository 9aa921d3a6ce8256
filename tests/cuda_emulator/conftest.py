"""Builds shared by the tests of the emulator."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from cuda_emulator import build


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """The Python module of the test kernels, kernels/module.cu."""
    spec = importlib.util.spec_from_file_location("emulator_kernels", build.module())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
