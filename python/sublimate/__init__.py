"""sublimate: PyTorch kernels for operations whose intermediate is too big to keep."""

from . import (
    fewbit,
    kronecker_attention,
    memory,
    multicut,
    path_integral,
    randomized_linear,
)
from ._backends import BackendUnavailable, get_backend, set_backend, use_backend
from ._info import backends
from ._native import NativeError
from ._version import __version__

__all__ = [
    "BackendUnavailable",
    "NativeError",
    "__version__",
    "backends",
    "fewbit",
    "get_backend",
    "kronecker_attention",
    "memory",
    "multicut",
    "path_integral",
    "randomized_linear",
    "set_backend",
    "use_backend",
]
