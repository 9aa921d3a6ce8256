"""Linear layers that keep a sketch of their input for backward; see README.md in this folder."""

from . import reference
from .convert import convert, restore
from .functional import SharedInput, hadamard_transform, linear, project, shared_input
from .modules import Conv2d, Linear
from .moments import variance
from .seeds import step

__all__ = [
    "Conv2d",
    "Linear",
    "SharedInput",
    "convert",
    "hadamard_transform",
    "linear",
    "project",
    "reference",
    "restore",
    "shared_input",
    "step",
    "variance",
]
