"""I-GOS: masks that delete what a score depends on, optimised with integrated gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks
from .._checks import fail_type, integer_between, number
from . import autograd
from .arguments import Forward, fail_value
from .chunks import Limits, Problem, frozen, pieces, run_halving
from .path import setup
from .sampling import sample_numbers
from .shards import seed_tensor

_TRIALS = 6  # step sizes tried, each half of the one before


@dataclass
class Masks:
    """What I-GOS found.

    Attributes:
        masks: [N, 1, size, size], 1 keeps.
        saliency: 1 - masks at the size of the images, [N, 1, H, W].
        objective: mean score over the path plus penalties, of each image after each iteration,
            [iterations + 1, N].
        score: of the masked images, [N]; and of the images as they are.
    """

    masks: Tensor
    saliency: Tensor
    objective: Tensor
    score: Tensor
    score_before: Tensor


def blurred(image: Tensor, sigma: float = 10.0) -> Tensor:
    """Gaussian blur with reflected borders, the usual baseline.

    Args:
        image: [N, C, H, W].
        sigma: of the Gaussian, in pixels; cut off at 3 sigma.

    Raises:
        ValueError: not four dimensions, or sigma <= 0.
    """
    _checks.floating_tensor("image", image)
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise fail_value("image", "[N, C, H, W] of at least one number", tuple(image.shape))
    number("sigma", sigma)
    sigma = float(sigma)
    if not 0 < sigma < math.inf:
        raise fail_value("sigma", "a finite number > 0", sigma)
    for dim in (2, 3):
        reach = max(0, min(int(3 * sigma), image.shape[dim] - 1))
        t = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
        weight = torch.softmax(-0.5 * (t / sigma) ** 2, 0)
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
        n, c, h, w = image.shape
        flat = F.pad(image, pad, mode="reflect").reshape(n * c, 1, *_padded(h, w, pad))
        image = F.conv2d(flat, weight.view(shape)).view(n, c, h, w)
    return image


def _padded(h: int, w: int, pad: tuple[int, ...]) -> tuple[int, int]:
    return h + pad[2] + pad[3], w + pad[0] + pad[1]


def igos(
    forward: Forward,
    inputs: Tensor,
    baselines: Tensor | None = None,
    target: Any = None,
    *,
    size: int = 28,
    iterations: int = 15,
    n_steps: int = 20,
    l1: float = 1.0,
    l2: float = 20.0,
    step: float = 1.0,
    stdev: float = 0.0,
    seed: int | Tensor | None = 0,
    additional_forward_args: Any = None,
    memory_budget: int | None = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
    backend: str | None = None,
) -> Masks:
    """Masks M [size, size] in [0, 1] that minimise score(M) + l1 mean|1 - M| + l2 TV(M).

    The score is replaced by its mean over the images k/K M (k = 1 .. K) between baseline and masked
    image, in the gradient and in what a step must lower: it still has a slope where the score
    itself is saturated, and leads around local minima. Steps are projected; each image takes the
    longest of some halvings that lowers its objective.

    Args:
        forward: images [N, C, H, W] -> scores, probabilities best.
        baselines: [N or 1, C, H, W]; None: the blurred images.
        n_steps: K.
        l1, l2: weights of area and total variation.
        step: first length tried; a longer one after a success.
        stdev, seed: noise on the images of the path.
        create_graph: ``score``, ``score_before`` and the last ``objective`` are differentiable in
            inputs, baselines and parameters. Masks count as constants, which at an optimum they
            are to first order (envelope theorem); they themselves have no gradient.
        The rest: as in ``integrated_gradients``, one target.

    Cost: iterations * n_steps * (gradients and 1 to 6 forwards) of the batch; memory O(chunk): the
    upsampled mask is never stored.
    Source: Qi, Khorram and Li, "Visualizing deep networks by optimizing with integrated gradients",
    2020 (from the paper's formulas).
    """
    if not isinstance(inputs, Tensor):
        raise fail_type("inputs", "one torch.Tensor", inputs)
    _checks.dense("inputs", inputs)
    if inputs.dim() != 4 or inputs.is_complex():
        raise fail_value("inputs", "real images [N, C, H, W]", tuple(inputs.shape))
    problem, _, _, chosen = setup(
        forward, inputs, target, False, additional_forward_args, False, backend
    )
    (space,) = problem.layout
    for name, value in (("size", size), ("iterations", iterations), ("n_steps", n_steps)):
        integer_between(name, value, 1, 2**20)
    for name, number_of in (("l1", l1), ("l2", l2), ("step", step), ("stdev", stdev)):
        number(name, number_of)
        if torch.finfo(space.acc).max < abs(number_of) < math.inf:
            raise fail_value(name, f"a number that {space.acc} holds", number_of)
    l1, l2, step, stdev = float(l1), float(l2), float(step), float(stdev)
    _checks.seed("seed", seed)
    limits = Limits.of(memory_budget, internal_batch_size)
    if baselines is not None:
        _checks.floating_tensor("baselines", baselines)
        _checks.readable("baselines", baselines)
        shape = tuple(baselines.shape)
        if shape[1:] != tuple(space.shape) or shape[0] not in (1, problem.batch):
            raise fail_value("baselines", f"shape {tuple(inputs.shape)} or 1 image", shape)
    _checks.flags(create_graph=create_graph)
    image = problem.x[0].view(-1, *space.shape)
    with torch.set_grad_enabled(create_graph):
        whole = inputs.to(image.dtype) if create_graph else image
        start = blurred(whole) if baselines is None else baselines.to(image)
    base = start.detach()
    run = _Run(problem, image, base, n_steps, l1, l2, stdev, seed, limits, chosen)
    with frozen(forward, True), torch.no_grad():
        found = run.optimise(size, iterations, step)
    if create_graph:
        with torch.enable_grad():
            run.image, run.base, run.backend = whole, start, "reference"
            found.score = run.score(found.masks)
            found.score_before = run.score(torch.ones_like(found.masks))
            last = run.objective(found.masks)
            found.objective = torch.cat((found.objective[:-1], last[None]))
    return found


class _Run:
    """The state of one call."""

    def __init__(
        self,
        problem: Problem,
        image: Tensor,
        base: Tensor,
        n_steps: int,
        l1: float,
        l2: float,
        stdev: float,
        seed: Any,
        limits: Limits,
        backend: str,
    ) -> None:
        self.problem, self.image, self.base = problem, image, base
        self.l1, self.l2, self.limits, self.backend = l1, l2, limits, backend
        k = torch.arange(1, n_steps + 1, dtype=image.dtype, device=image.device)
        self.alpha = k / n_steps
        self.one = torch.ones(1, dtype=image.dtype, device=image.device)
        batch = image.shape[0]
        self.stdev = torch.full((batch,), stdev, dtype=image.dtype, device=image.device)
        self.noisy = stdev > 0
        self.seed = seed_tensor(seed, image.device)
        self.sample = sample_numbers(None, batch, image.device)
        self.rows = limits.choose(problem, n_steps)
        self.drawn = 0

    def points(self, mask: Tensor, alpha: Tensor, first: int | None = None) -> Tensor:
        (space,) = self.problem.layout
        noise: dict[str, Any] = {}
        if first is not None and self.noisy:
            words = -(-space.size // 4) * 4
            row = (self.sample * 2**32 + first) * words
            noise = {"stdev": self.stdev, "seed": self.seed, "row": row, "step": words}
        return autograd.mask_points(
            self.image, self.base, mask, alpha, dtype=space.points, backend=self.backend, **noise
        )

    def gradient(self, mask: Tensor) -> Tensor:
        """Gradient of the mean score over the path, [N, 1, h, w]."""
        size = (mask.shape[2], mask.shape[3])
        k = len(self.alpha)

        def go(rows: int) -> Tensor:
            total = torch.zeros_like(mask)
            for piece in pieces(k, max(1, rows // self.problem.batch)):
                alpha = self.alpha[piece]
                z = self.points(mask, alpha, self.drawn + piece.start)
                ((_, (g,)),) = self.problem.gradients([z.flatten(2)])
                total += autograd.mask_grad(
                    g.view(z.shape), self.image, self.base, alpha, *size, backend=self.backend
                )
            return total / k

        found: Tensor
        found, self.rows = run_halving(self.rows, go)
        self.drawn += k
        return found

    def score(self, mask: Tensor) -> Tensor:
        """Score of the masked images, [N]."""
        z = self.points(mask, self.one)
        (value,) = self.problem.outputs([z.flatten(2)])
        return value.reshape(-1).to(mask.dtype)

    def penalty(self, mask: Tensor) -> Tensor:
        variation, area = autograd.mask_penalty(mask, self.backend)
        return self.l1 * area + self.l2 * variation

    def path_score(self, mask: Tensor) -> Tensor:
        """Mean score over the path, without noise, [N]: what ``gradient`` is the gradient of."""
        n = self.problem.batch

        def go(rows: int) -> Tensor:
            total: Any = 0
            for piece in pieces(len(self.alpha), max(1, rows // n)):
                z = self.points(mask, self.alpha[piece])
                (value,) = self.problem.outputs([z.flatten(2)])
                if value.numel() < n:
                    raise fail_value("forward", "a score of each image", tuple(value.shape))
                total = total + value.view(-1, n).to(mask.dtype).sum(0)
            return total / len(self.alpha)

        found: Tensor
        found, self.rows = run_halving(self.rows, go)
        return found

    def objective(self, mask: Tensor) -> Tensor:
        return self.path_score(mask) + self.penalty(mask)

    def optimise(self, size: int, iterations: int, step: float) -> Masks:
        n = self.image.shape[0]
        mask = self.image.new_ones((n, 1, size, size))
        before = self.score(mask)
        value = self.objective(mask)
        history = [value]
        length = torch.full((n, 1, 1, 1), step, dtype=mask.dtype, device=mask.device)
        for _ in range(iterations):
            weights = (
                torch.full((n,), self.l2, dtype=mask.dtype, device=mask.device),
                torch.full((n,), self.l1, dtype=mask.dtype, device=mask.device),
            )
            slope = self.gradient(mask)
            slope = slope + autograd.mask_penalty_grad(mask, *weights, self.backend)
            slope = slope / slope.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
            best, best_mask = value, mask
            factor = torch.zeros(n, dtype=mask.dtype, device=mask.device)
            for trial in range(_TRIALS):
                scale = 0.5**trial
                moved = (mask - scale * length * slope).clamp(0, 1)
                now = self.objective(moved)
                # The longest step that lowers an image's objective: each decides for itself.
                better = (now < value) & (factor == 0)
                factor = torch.where(better, scale, factor)
                best = torch.where(better, now, best)
                best_mask = torch.where(better[:, None, None, None], moved, best_mask)
                if bool((factor > 0).all()):
                    break
            # Twice what worked; an eighth where nothing did.
            length = length * torch.where(factor > 0, 2 * factor, 0.125)[:, None, None, None]
            mask, value = best_mask, best
            history.append(value)
        h, w = self.image.shape[-2:]
        up = F.interpolate(1 - mask, (h, w), mode="bilinear", align_corners=True)
        return Masks(mask, up, torch.stack(history), self.score(mask), before)
