"""Imports run downhill only, in every family; and the checker catches each way to break that."""

from __future__ import annotations

import pytest
from helpers import import_rule
from helpers.native_build import ROOT

MODULES = import_rule.sources(ROOT)


def test_sources_are_all_there():
    for name in (
        "sublimate.fewbit.ops",
        "sublimate._native.fewbit",
        "sublimate.kernels.fewbit.fwd",
    ):
        assert name in MODULES
    assert "fewbit" in import_rule.families(MODULES)
    edges = import_rule.graph(MODULES)
    assert "sublimate.kernels.fewbit.fwd" in edges["sublimate.fewbit.ops"]
    assert "sublimate._native" in edges["sublimate.fewbit.ops"]
    assert "sublimate.kernels.common.launch" in edges["sublimate.kernels.fewbit.fwd"]


def test_the_rule_holds():
    assert import_rule.violations(MODULES) == []


#: (file, line planted in it, what the checker says)
PLANTED = [
    ("fewbit.ops", "from . import autograd", "ops -> fewbit.autograd: uphill"),
    ("fewbit.ops", "def f():\n    from .modules import GELU", "ops -> fewbit.modules: uphill"),
    ("fewbit.autograd", "import sublimate.fewbit.functional", "-> fewbit.functional: uphill"),
    ("fewbit.functional", "from sublimate.fewbit.modules import GELU", "modules: uphill"),
    ("fewbit.tables", "from . import functional", "circle"),
    ("fewbit.codebook", "from . import modules", "modules: uphill"),
    ("fewbit.functional", "from .. import _native", "only ops does"),
    ("fewbit.modules", "from ..kernels.fewbit import fwd", "only ops does"),
    ("fewbit.reference", "import numpy", "reference.py imports torch alone"),
    ("fewbit.reference", "from .. import _checks", "reference.py imports torch alone"),
    ("fewbit.reference", "from .codebook import Codebook", "reference.py imports torch alone"),
    ("fewbit.functions", "import numpy", "reference.py imports torch alone"),
    ("fewbit.functions", "from .. import _checks", "reference.py imports torch alone"),
    ("fewbit.quantiser", "import sublimate", "a package is not imported from inside"),
    ("fewbit.ops", "from . import gelu", "a package is not imported from inside"),
    ("fewbit.ops", "from ..other import functional", "families do not import one another"),
    ("fewbit.ops", "from ..kernels.other import fwd", "families do not import one another"),
    ("other.functional", "from ..fewbit import codebook", "families do not import one another"),
    ("kernels.fewbit.fwd", "from sublimate import _philox", "kernels know their family"),
    ("kernels.fewbit.math", "from ...fewbit import reference", "kernels know their family"),
    ("kernels.fewbit.bwd", "from ..other import fwd", "kernels know their family"),
    ("kernels.common.launch", "from ..fewbit import math", "kernels know their family"),
    ("_backends", "from .fewbit import ops", "knows none of them"),
    ("_checks", "def f():\n    from . import fewbit", "knows none of them"),
]


@pytest.mark.parametrize(("file", "line", "says"), PLANTED)
def test_planted(file, line, says):
    other = {
        "sublimate.other.__init__": "",
        "sublimate.other.reference": "import torch",
        "sublimate.other.functional": "from . import reference",
        "sublimate.kernels.other.__init__": "",
        "sublimate.kernels.other.fwd": "import triton",
    }
    modules = {**MODULES, **other}
    assert import_rule.violations(modules) == []
    name = f"sublimate.{file}"
    modules[name] = f"{modules[name]}\n{line}\n"
    found = import_rule.violations(modules)
    assert any(says in text for text in found), found
