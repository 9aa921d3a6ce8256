import torch

from .autograd import ops


def solve(x, w, offsets, alpha, q, *, method, refine, restarts, backend, report, group, want_info):
    lab = ops.multicut_gaec(x, w, offsets, alpha, q, "reference")[0]
    n = x.shape[0]
    root = lab == torch.arange(n)
    rank = root.long().cumsum(0)
    before = torch.nn.functional.pad(rank, (1, 0))[offsets]
    inst = torch.bucketize(torch.arange(n), offsets[1:], right=True)
    return rank[lab] - 1 - before[inst] if n else lab, None
