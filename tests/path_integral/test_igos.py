"""I-GOS from end to end: the mask lies on what the score depends on, and deletes it first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sublimate import path_integral as pi
from torch import Tensor

PLACES = ((4, 5), (18, 6), (9, 17))  # top left corner of the object in each picture
WIDE = 8


def pictures(size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise with a bright, striped square planted in each, [3, 1, size, size], and where it is."""
    x = 0.15 * torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    object_ = torch.zeros(3, 1, size, size, dtype=torch.bool)
    for i, (row, column) in enumerate(PLACES):
        object_[i, 0, row : row + WIDE, column : column + WIDE] = True
        x[i, 0, row : row + WIDE : 2, column : column + WIDE] = 1.5
        x[i, 0, row + 1 : row + WIDE : 2, column : column + WIDE] = -1.5
    return x, object_


def detector(x: Tensor) -> Tensor:
    """Probability that there are stripes: the mean of the largest answers of a filter."""
    kernel = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=x.dtype).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    answer = F.softplus(F.conv2d(x, kernel / 16) * 4)
    score = answer.flatten(1).topk(16, 1).values.mean(1)
    return torch.stack((2 - score, score - 2), 1).mul(2).softmax(1)


def found(x: Tensor, **options: float) -> pi.Masks:
    base = torch.zeros_like(x)
    return pi.igos(
        detector, x, base, 1, size=8, iterations=12, n_steps=8, l1=0.6, l2=0.5, **options
    )  # type: ignore[arg-type]


def test_the_mask_finds_a_planted_object() -> None:
    x, object_ = pictures()
    masks = found(x)
    assert masks.masks.shape == (3, 1, 8, 8) and masks.saliency.shape == x.shape
    assert float(masks.masks.min()) >= 0 and float(masks.masks.max()) <= 1
    inside = (masks.saliency * object_).sum((1, 2, 3)) / object_.sum((1, 2, 3))
    outside = (masks.saliency * ~object_).sum((1, 2, 3)) / (~object_).sum((1, 2, 3))
    assert bool((inside > 4 * outside).all()) and bool((inside > 0.3).all())
    assert bool((masks.score_before > 0.85).all()) and bool((masks.score < 0.3).all())
    # Never worse than the iteration before; the first is the whole image.
    assert bool((masks.objective.diff(dim=0) <= 0).all())


def test_deletion_and_insertion_curves() -> None:
    """Pixels in the order of the mask delete the score sooner, and bring it back sooner, than in a
    random order: area under either curve."""
    x, _ = pictures()
    saliency = found(x).saliency.flatten(1)
    chance = torch.rand(saliency.shape, generator=torch.Generator().manual_seed(1))

    def area(order: Tensor, delete: bool) -> Tensor:
        ranks = order.argsort(dim=1, descending=True).argsort(dim=1).view(x.shape)
        steps = torch.linspace(0, x[0].numel(), 17)
        curve = []
        for count in steps:
            first = ranks < count
            curve.append(detector(torch.where(~first if delete else first, x, 0.0))[:, 1])
        return torch.stack(curve).mean(0)

    assert bool((area(saliency, True) < 0.6 * area(chance, True)).all())
    assert bool((area(saliency, False) > area(chance, False)).all())


def test_batched_is_single() -> None:
    x, _ = pictures()
    for noise in (0.0, 0.1):
        together = found(x, stdev=noise)
        first = found(x[:1], stdev=noise)  # noise follows the sample's number
        torch.testing.assert_close(together.masks[:1], first.masks)
        torch.testing.assert_close(together.objective[:, :1], first.objective)
        if not noise:
            for i in (1, 2):
                torch.testing.assert_close(together.masks[i : i + 1], found(x[i : i + 1]).masks)


def test_chunks_and_backends_agree() -> None:
    x, _ = pictures()
    whole = found(x)
    # Sums in another order, carried through 12 steps.
    torch.testing.assert_close(
        found(x, internal_batch_size=5).masks, whole.masks, rtol=1e-3, atol=1e-3
    )
    plain = found(x, backend="reference")  # type: ignore[arg-type]
    torch.testing.assert_close(plain.masks, whole.masks, rtol=1e-3, atol=1e-3)
