"""torch.library.opcheck on every registered op: schema, fake tensors, tracing, dynamic shapes."""

from __future__ import annotations

import pytest
import torch
from helpers.multicut_cases import mixture, run, slots_of

OPS = {
    "multicut_topk", "multicut_negative_sum", "multicut_contract", "multicut_best_cluster",
    "multicut_move", "multicut_gaec", "multicut_kernighan_lin", "multicut_gaec_graph",
    "multicut_lazy",
}  # fmt: skip


def arguments(dtype: torch.dtype, backend: str) -> dict[str, tuple]:
    case = mixture((19, 0, 14), 5, dtype, weighted=True)
    state = slots_of(case, 3, 2)
    rows = torch.arange(33)
    target, _ = run.multicut_best_cluster(*case.nodes, *state, backend)
    neighbors = run.multicut_topk(*case.nodes, None, None, None, 2, 0, backend)[1]
    edges, costs = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, -1], dtype=torch.float64)
    others = case.features[:21].clone(), case.weights[:21].clone(), torch.tensor([0, 9, 9, 21])
    graph = "cpu" if backend == "cuda" else backend
    return {
        "multicut_topk": (*case.nodes, *others, 3, None, backend),
        "multicut_negative_sum": (*case.nodes, backend),
        "multicut_contract": (case.features, case.weights, state[0], len(state[2]), backend),
        "multicut_best_cluster": (*case.nodes, *state, backend),
        "multicut_move": (*case.nodes, *state, rows, case.offsets, target, backend),
        "multicut_gaec": (*case.nodes, backend),
        "multicut_kernighan_lin": (*case.nodes, rows, 0, 3, backend),
        "multicut_gaec_graph": (edges, costs, 3, graph),
        "multicut_lazy": (*case.nodes, neighbors, backend),
    }


def test_every_op_is_here():
    """A new op of the family must be added to this file."""
    names = torch._C._dispatch_get_all_op_names()
    registered = {n.split("::")[1].split(".")[0] for n in names if "sublimate::multicut" in n}
    assert registered == OPS == set(arguments(torch.float32, "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_op(lane_of_op, name, dtype):
    op = getattr(run, name).default
    # Labels and choices have no gradient, so autograd has nothing to register.
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    if name == "multicut_gaec_graph":
        checks.pop()  # rows after the last contraction are not written: two calls need not agree
    torch.library.opcheck(op, arguments(dtype, lane_of_op)[name], test_utils=checks)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def lane_of_op(request):
    if request.param == "cuda":
        request.getfixturevalue("emulated_cuda")
    return request.param
