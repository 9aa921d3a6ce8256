"""Run by multicut/test_distributed.py in each of two processes: dense multicut over gloo on CPU."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from helpers.mixtures import mixture
from sublimate import multicut
from torch import Tensor

#: Name -> options; every method whose rounds pass over all pairs, and a batch.
CASES = {
    "star": {"alpha": 0.4, "method": "star"},
    "average": {"alpha": 0.4, "method": "average", "refine": None},
    "reciprocal": {"alpha": 0.3, "method": "reciprocal"},
    "lazy": {"alpha": 0.4, "method": "lazy"},
    "default": {"alpha": 0.25, "restarts": 4},
    "weights": {"alpha": 0.4, "method": "star", "negative_dims": 3},
    "ragged": {"alpha": 0.4, "method": "star", "offsets": [0, 1, 150, 150, 601]},
}


def run(name: str, group: object) -> Tensor:
    x, _ = mixture(601, 12, 3, 0.8)  # a prime: the shares of two ranks differ
    options = dict(CASES[name])
    if name == "weights":
        options["weights"] = torch.linspace(0.5, 1.5, 601)
    if name == "default":
        options["must_link"] = torch.tensor([[0, 600], [5, 300]])
    labels: Tensor = multicut.dense_multicut(x, group=group, **options)
    return labels


def main(rank: int, world: int, folder: str) -> None:
    """Every case in turn; its labels, and most rows asked for, to <folder>/<case>-<rank>."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    from sublimate.multicut import distributed

    largest = 0
    topk = distributed.ops.multicut_topk

    def watched(features: Tensor, *rest: object) -> object:
        nonlocal largest
        largest = max(largest, features.shape[0])
        return topk(features, *rest)

    class Ops:
        multicut_topk = staticmethod(watched)

    distributed.ops = Ops()  # type: ignore[assignment]
    try:
        for name in CASES:
            labels = run(name, dist.group.WORLD)
            torch.save((labels, largest), f"{folder}/{name}-{rank}")
    finally:
        dist.destroy_process_group()
