"""Linear layers that keep a sketch of their input for backward; see README.md in this folder."""

from . import reference
from .convert import convert, restore
from .functional import SharedInput, hadamard_transform, linear, project, shared_input
from .modules import Conv2d, Linear
from .moments import variance
from .noise import LayerNoise, NoiseReport, choose_ratio, noise_report
from .seeds import step

__all__ = [
    "Conv2d",
    "LayerNoise",
    "Linear",
    "NoiseReport",
    "SharedInput",
    "choose_ratio",
    "convert",
    "hadamard_transform",
    "linear",
    "noise_report",
    "project",
    "reference",
    "restore",
    "shared_input",
    "step",
    "variance",
]
