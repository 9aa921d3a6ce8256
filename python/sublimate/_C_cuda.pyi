"""Kernels of the CUDA module: those of the CPU module, on device memory and a stream."""

from ._C import (
    error_text as error_text,
    fewbit_bwd as fewbit_bwd,
    fewbit_functions as fewbit_functions,
    fewbit_fwd as fewbit_fwd,
    fewbit_gated_bwd as fewbit_gated_bwd,
    fewbit_gated_fwd as fewbit_gated_fwd,
)

architectures: str  # e.g. "80 90 100 +PTX"
