"""Kernels of the CUDA module: those of the CPU module, on device memory and a stream."""

from ._C import (
    error_text as error_text,
)
from ._C import (
    fewbit_bwd as fewbit_bwd,
)
from ._C import (
    fewbit_functions as fewbit_functions,
)
from ._C import (
    fewbit_fwd as fewbit_fwd,
)
from ._C import (
    fewbit_gated_bwd as fewbit_gated_bwd,
)
from ._C import (
    fewbit_gated_fwd as fewbit_gated_fwd,
)
from ._C import (
    path_accumulate as path_accumulate,
)
from ._C import (
    path_difference as path_difference,
)
from ._C import (
    path_mask_grad as path_mask_grad,
)
from ._C import (
    path_mask_penalty as path_mask_penalty,
)
from ._C import (
    path_mask_points as path_mask_points,
)
from ._C import (
    path_points as path_points,
)
from ._C import (
    path_scale as path_scale,
)
from ._C import (
    randomized_linear_gather as randomized_linear_gather,
)
from ._C import (
    randomized_linear_hadamard as randomized_linear_hadamard,
)
from ._C import (
    randomized_linear_project as randomized_linear_project,
)

architectures: str  # e.g. "80 90 100 +PTX"
