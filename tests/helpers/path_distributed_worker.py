"""Run by test_path_distributed.py in each of two processes: with the group and without."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from helpers.path_cases import REFERENCES, B, X, cnn, mlp
from sublimate import path_integral as pi


def main(rank: int, store: str) -> None:
    """Raises unless every estimator gives with two processes what it gives with one."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    group = dist.group.WORLD
    model, smooth = mlp(), cnn(torch.nn.GELU).double()
    batch = torch.cat((X, B, X * 2))
    image = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    reduced = dist.all_reduce
    count = []

    def counted(*arguments: object, **options: object) -> object:
        count.append(1)
        return reduced(*arguments, **options)

    dist.all_reduce = counted
    cases = {
        "points": lambda **k: pi.integrated_gradients(model, batch, B, 1, n_steps=7, **k),
        "more processes than points": lambda **k: pi.integrated_gradients(
            model, batch, B, 1, n_steps=1, **k),
        "two inputs' dtypes": lambda **k: pi.integrated_gradients(
            lambda a, b: (a.double().sum((1, 2, 3)) * b.sum(1)).tanh(),
            (image.float(), batch[:2]), n_steps=6, **k)[0],
        "cnn": lambda **k: pi.integrated_gradients(smooth, image, target="all", n_steps=5, **k),
        "samples": lambda **k: pi.integrated_gradients(
            model, batch, B, 1, n_steps=7, **(k and {**k, "shard": "samples"})),
        "tolerance": lambda **k: pi.integrated_gradients(
            model, batch, B, 1, tol=1e-7, **(k and {**k, "shard": "samples"})),
        "expected": lambda **k: pi.expected_gradients(
            model, batch, REFERENCES, 1, n_samples=9, **k),
        "smooth": lambda **k: pi.smooth_grad(model, batch, 1, kind="squared", n_samples=9, **k),
        "frequencies": lambda **k: pi.cross_domain_integrated_gradients(model, batch, B, 1, **k),
    }  # fmt: skip
    for name, run in cases.items():
        alone = run()
        count.clear()
        together = run(group=group)
        assert len(count) == 1, f"{name}: {len(count)} all-reduces"
        atol = 1e-13 if together.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(
            together, alone, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
    # A seed by chance: the first process's.
    for draw in (
        lambda **k: pi.smooth_grad(model, batch, 1, n_samples=3, seed=None, **k),
        lambda **k: pi.expected_gradients(
            model, batch, REFERENCES, 1, n_samples=8, seed=None, **k),
    ):  # fmt: skip
        torch.manual_seed(0)
        alone = draw()
        torch.manual_seed(rank)
        torch.testing.assert_close(draw(group=group), alone, atol=1e-13, rtol=0)
    try:
        pi.integrated_gradients(model, batch, B, 1, group=group, create_graph=True)
    except ValueError as error:
        assert "group: expected None with create_graph" in str(error)
    else:
        raise AssertionError("create_graph with a group was not refused")
    dist.barrier()
    dist.destroy_process_group()
