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
    multicut_best_cluster as multicut_best_cluster,
)
from ._C import (
    multicut_contract as multicut_contract,
)
from ._C import (
    multicut_gaec as multicut_gaec,
)
from ._C import (
    multicut_gaec_work as multicut_gaec_work,
)
from ._C import (
    multicut_kernighan_lin as multicut_kernighan_lin,
)
from ._C import (
    multicut_lazy as multicut_lazy,
)
from ._C import (
    multicut_move as multicut_move,
)
from ._C import (
    multicut_negative_sum as multicut_negative_sum,
)
from ._C import (
    multicut_topk as multicut_topk,
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
