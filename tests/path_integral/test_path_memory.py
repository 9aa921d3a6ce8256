"""Peak memory, counted from the allocator's events: O(chunk), and against Captum's unchunked."""

from __future__ import annotations

import pytest
import torch
from helpers.path_cases import cnn
from helpers.path_memory import peak
from sublimate import path_integral as pi
from sublimate.path_integral.chunks import Limits, pieces, saved_per_row
from sublimate.path_integral.path import setup


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_peak_at_200_steps_is_a_sixth_of_captums(kind: str) -> None:
    pytest.importorskip("captum", reason="captum is not installed; pip install captum==0.9.0")
    theirs, ours = peak("captum", kind, 200), peak("ours", kind, 200)
    print(f"{kind}: {theirs / 2**20:.0f} MiB against {ours / 2**20:.0f} MiB")
    assert theirs > 6 * ours, f"{kind}: {theirs / 2**20:.0f} against {ours / 2**20:.0f} MiB"


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    few, many = peak("ours", "cnn", 50), peak("ours", "cnn", 400)
    assert 0 < many < 1.1 * few


def test_a_budget_splits_steps_and_then_the_batch() -> None:
    seen: list[int] = []
    model = cnn()
    model.register_forward_hook(lambda m, given, out: seen.append(len(out)))
    x = torch.randn(6, 3, 12, 12)
    problem = setup(model, x, 1, False, None, False, None)[0]
    row = 2 * saved_per_row(problem) + 2 * x[0].numel() * 4
    for rows in (1, 4, 6, 20):
        seen.clear()
        pi.integrated_gradients(model, x, target=1, n_steps=10, memory_budget=rows * row)
        assert max(seen) <= rows and max(seen) > rows // 2 and sum(seen) == 60


def test_saved_bytes_are_measured() -> None:
    """One linear layer before a GELU keeps its output; parameters do not count."""
    model = torch.nn.Sequential(torch.nn.Linear(50, 300), torch.nn.GELU())
    problem = setup(model, torch.randn(4, 50), 1, False, None, False, None)[0]
    assert 300 * 4 <= saved_per_row(problem) <= 300 * 4 + 50 * 4


def test_pieces_are_even_and_cover() -> None:
    for total, most in ((50, 21), (7, 7), (10, 3), (1, 5), (100, 1)):
        parts = pieces(total, most)
        assert [i for p in parts for i in range(p.start, p.stop)] == list(range(total))
        sizes = [p.stop - p.start for p in parts]
        assert max(sizes) <= most and max(sizes) - min(sizes) <= 1


def test_small_problems_go_at_once() -> None:
    problem = setup(torch.nn.Linear(5, 2), torch.randn(16, 5), 1, False, None, False, None)[0]
    assert Limits.of(None, None).choose(problem, 50) == 800
