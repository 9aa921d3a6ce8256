"""Linear layers that keep a sketch of their input for backward; see README.md in this folder."""

from . import reference
from .functional import SharedInput, hadamard_transform, linear, project, shared_input

__all__ = [
    "SharedInput",
    "hadamard_transform",
    "linear",
    "project",
    "reference",
    "shared_input",
]
