"""The path-integral section of ``sublimate demo``: what small networks look at, and how well it is
known.

Digits and a photograph: attributions of trained networks, as pictures. Rules: error against
evaluations. Training: with and without a prior on attributions. Frequencies: a series whose
informative ones are known. Blocks: digits beside a block that says nothing, in two places; which
attribution finds the block that counts, and how much a network learns from the pixels it names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import _backends
from .._parity import Measurement
from .._report import Progress, Result, Settings
from . import checks, figures
from .domains import cross_domain_integrated_gradients
from .expected import expected_gradients
from .functional import integrated_gradients
from .hooks import full_grad
from .igos import blurred, igos
from .learning import accuracy, convolutional, digits, train
from .priors import attribution_prior
from .smooth import smooth_grad

_STEPS, _QUICK_STEPS = 300, 12
_RULES = (
    "riemann_left", "riemann_middle", "riemann_trapezoid", "clenshawcurtis", "gausslegendre",
)  # fmt: skip
_POINTS, _QUICK_POINTS = (4, 8, 16, 32, 64, 128), (4, 8)
_SERIES, _INFORMATIVE = 128, (11, 24)  # samples; periods in them, of class 0 and of class 1
_KEEP = 0.2  # of the pixels, in the retraining test
_NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
Tell = Callable[[str], None]


@dataclass
class Judged:
    """One attribution on blocks.

    Attributes:
        share: of the named pixels that lie in the block with the digit.
        kept: accuracy of networks that see the most and the least important pixels only.
    """

    name: str
    share: float
    kept: tuple[float, float]
    seconds: float

    @property
    def difference(self) -> float:
        return self.kept[0] - self.kept[1]


# ------------------------------------------------------------------------------------- the parts


def pictures_of_digits(
    model: nn.Module, x: Tensor, y: Tensor, references: Tensor
) -> dict[str, Tensor]:
    """Name -> maps (10, 8, 8) of one image of each digit, in the order of the digits."""
    return {
        "image": x[:, 0],
        "integrated": integrated_gradients(model, x, target=y)[:, 0],
        "expected": expected_gradients(model, x, references, y, n_samples=64)[:, 0],
        "smoothed": smooth_grad(model, x, y, stdev=0.15, n_samples=64)[:, 0] * x[:, 0],
        "FullGrad": full_grad(model, x, y).map((8, 8)),
    }


def photograph(seed: int, quick: bool, device: str) -> figures.Photograph:
    """scikit-image's cat through a network that learned to tell crops of three photographs apart,
    and through the same network before it learned anything."""
    from skimage import data
    from skimage.transform import resize

    size = 48
    generator = torch.Generator().manual_seed(seed)
    whole = []
    for picture in (data.chelsea(), data.astronaut(), data.coffee()):
        side = min(picture.shape[:2])
        square = picture[:side, (picture.shape[1] - side) // 2 :][:, :side]
        array = resize(square, (64, 64), anti_aliasing=True).astype(np.float32)
        whole.append(torch.from_numpy(array).permute(2, 0, 1))

    def crops(count: int) -> tuple[Tensor, Tensor]:
        label = torch.randint(3, (count,), generator=generator)
        corner = torch.randint(64 - size + 1, (count, 2), generator=generator)
        found = [whole[c][:, i : i + size, j : j + size]
                 for c, (i, j) in zip(label.tolist(), corner.tolist(), strict=True)]  # fmt: skip
        return torch.stack(found).to(device), label.to(device)

    x, y = crops(64 if quick else 512)
    torch.manual_seed(seed)
    model = convolutional(size, size, 3, 3).to(device)
    image = whole[0][:, 6 : 6 + size, 8 : 8 + size][None].to(device)
    before = integrated_gradients(model.eval(), image, target=0)[0]
    train(model, x, y, 4 if quick else 80, seed, rate=1e-3)

    def probability(z: Tensor) -> Tensor:
        return model(z).softmax(1)

    # A baseline that says nothing of the class: whichever the network finds least like it.
    colour = x.mean((0, 2, 3), keepdim=True).expand_as(image)
    plain = torch.cat([colour, *(torch.full_like(image, v) for v in (0.0, 0.5, 1.0)),
                       blurred(image, 6.0)])  # fmt: skip
    with torch.no_grad():
        base = plain[probability(plain)[:, 0].argmin()][None]
    found, info = integrated_gradients(
        probability, image, base, target=0, tol=1e-2, return_info=True
    )
    masks = igos(
        probability, image, base, 0, size=12, iterations=3 if quick else 12, n_steps=10, l1=0.3,
        l2=2.0,
    )  # fmt: skip
    test, labels = crops(128)
    return figures.Photograph(
        image[0].cpu(), before.cpu(), found[0].cpu(), masks.saliency[0, 0].cpu(),
        accuracy(model, test, labels), float(info.error / info.size), int(info.steps),
        (float(masks.score_before), float(masks.score)),
    )  # fmt: skip


def convergence(
    model: nn.Module, x: Tensor, y: Tensor, points: tuple[int, ...]
) -> dict[str, list[float]]:
    """Rule -> median error of attributions to the probability, at each number of evaluations."""

    def probability(z: Tensor) -> Tensor:
        return model(z).softmax(1)

    truth = integrated_gradients(probability, x, target=y, n_steps=400).flatten(1)
    size = truth.abs().sum(1)

    def error(found: Tensor) -> float:
        return float(((found.flatten(1) - truth).abs().sum(1) / size).median())

    curves = {
        rule: [error(integrated_gradients(probability, x, target=y, n_steps=n, method=rule))
               for n in points]
        for rule in _RULES
    }  # fmt: skip
    zero = torch.zeros_like(x[:1])
    for name, stratified in (("random places", False), ("stratified places", True)):
        curves[name] = [
            error(expected_gradients(probability, x, zero, y, n_samples=n, stratified=stratified))
            for n in points
        ]
    return curves


def with_and_without_prior(
    x: Tensor, y: Tensor, test: Tensor, truth: Tensor, steps: int, seed: int
) -> figures.Priors:
    """Accuracy under noise and variation of attributions of two networks, from 200 images."""
    found = figures.Priors(list(_NOISES))
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(seed)).to(test.device)
    for name, weight in (("without", 0.0), ("with prior", 3.0)):
        torch.manual_seed(seed)
        model = train(
            convolutional(8, 8, 10).to(x.device), x[:200], y[:200], steps, seed, prior=weight
        )
        found.accuracy[name] = [accuracy(model, test + s * noise, truth) for s in _NOISES]
        attributions = integrated_gradients(model, test[:128], target=truth[:128])
        found.variation[name] = float(attribution_prior(attributions, kind="total_variation"))
        found.maps[name] = attributions[:6, 0].cpu()
    found.images = test[:6, 0].cpu()
    return found


def frequencies(steps: int, seed: int, device: str) -> figures.Frequencies:
    """Series of two classes that differ in the period of one wave among others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        label = torch.randint(2, (count,), generator=generator)
        t = torch.arange(_SERIES) / _SERIES
        phase = 2 * torch.pi * torch.rand((count, 3), generator=generator)
        own = torch.tensor(_INFORMATIVE)[label]
        both = torch.stack([torch.full_like(own, 4), torch.full_like(own, 17), own], 1)
        waves = torch.sin(2 * torch.pi * both[:, :, None] * t + phase[:, :, None]).sum(1)
        series = waves + 0.5 * torch.randn((count, _SERIES), generator=generator)
        return series[:, None].to(device), label.to(device)

    x, y = draw(1024)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 15, padding=7), nn.GELU(), nn.Conv1d(16, 16, 15, 2, 7), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2),
    ).to(device)  # fmt: skip
    train(model, x, y, steps, seed)
    test, truth = draw(256)
    found = cross_domain_integrated_gradients(
        model, test, target=truth, transform="rfft", return_convergence_delta=True
    )
    attributions, delta = found
    size = attributions.abs()[:, 0].mean(0)
    mean = [attributions[truth == c, 0].mean(0).cpu() for c in (0, 1)]
    near = sum(float(size[f - 1 : f + 2].sum()) for f in _INFORMATIVE)
    return figures.Frequencies(
        test[0, 0].cpu(), mean, _INFORMATIVE, near / float(size.sum()),
        accuracy(model, test, truth), float(delta.abs().max()),
    )  # fmt: skip


def blocks(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 16, 8) of a digit and a block that is always the same, one above the other, and
    whether the digit is above."""
    generator = torch.Generator().manual_seed(seed)
    above = torch.randint(2, (len(x),), generator=generator).bool().to(x.device)
    null = torch.zeros(8, 8, device=x.device)
    null[1:7, 1:7] = 0.5
    null[torch.arange(1, 7), torch.arange(1, 7)] = null[
        torch.arange(1, 7), 7 - torch.arange(1, 7)
    ] = 1
    other = null.expand_as(x)
    first = torch.where(above[:, None, None, None], x, other)
    second = torch.where(above[:, None, None, None], other, x)
    return torch.cat([first, second], 2), above


def judge(
    data: tuple[Tensor, Tensor, Tensor, Tensor], steps: int, seed: int, tell: Tell
) -> tuple[list[Judged], figures.Blocks]:
    """Attributions of a network on blocks, by where they point and by retraining (DiffROAR).

    Source: Shah, Jain and Netrapalli, "Do input gradients highlight discriminative features?",
    2021: accuracy from the fifth of the pixels with the largest attributions less that from the
    fifth with the smallest.
    """
    x, y, test, truth = data
    train_x, _ = blocks(x, seed)
    test_x, above = blocks(test, seed + 1)
    torch.manual_seed(seed)
    model = train(convolutional(16, 8, 10).to(x.device), train_x, y, steps, seed)
    mean = train_x.mean(0, keepdim=True)

    def random(z: Tensor, label: Tensor) -> Tensor:
        return torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)).to(z.device)

    methods: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "gradient": lambda z, t: smooth_grad(model, z, t, stdev=0.0, n_samples=1),
        "SmoothGrad": lambda z, t: smooth_grad(model, z, t, stdev=0.15, n_samples=32),
        "integrated gradients": lambda z, t: integrated_gradients(model, z, mean, t, n_steps=32),
        "expected gradients": lambda z, t: expected_gradients(
            model, z, train_x[:200], t, n_samples=32
        ),
        "chance": random,
    }
    found, maps = [], {}
    for name, method in methods.items():
        tell(f"judging {name}")
        start = time.perf_counter()
        seen = method(test_x, truth).abs()[:, 0]
        seconds = time.perf_counter() - start
        maps[name] = seen[:4].cpu()
        named = _top(seen, _KEEP)
        upper = named[:, :8].flatten(1).sum(1) / named.flatten(1).sum(1)
        share = float(torch.where(above, upper, 1 - upper).mean())
        of_training = method(train_x, y).abs()[:, 0]
        kept = []
        for sign in (1.0, -1.0):
            masks = [_top(sign * a, _KEEP)[:, None].to(x.dtype) for a in (of_training, seen)]
            torch.manual_seed(seed)
            blind = train(
                convolutional(16, 8, 10).to(x.device), train_x * masks[0], y, steps // 2, seed
            )
            kept.append(accuracy(blind, test_x * masks[1], truth))
        found.append(Judged(name, share, (kept[0], kept[1]), seconds))
    return found, figures.Blocks(test_x[:4, 0].cpu(), maps, accuracy(model, test_x, truth))


def _top(a: Tensor, part: float) -> Tensor:
    """Whether a number is among the largest ``part`` of its sample; (B, H, W) bool."""
    flat = a.flatten(1)
    count = max(1, round(part * flat.shape[1]))
    marked = torch.zeros_like(flat, dtype=torch.bool)
    return marked.scatter_(1, flat.topk(count, 1).indices, True).view(a.shape)


def _parity(model: nn.Module, x: Tensor, y: Tensor, backend: str) -> list[Measurement]:
    """On the digits: completeness, and the estimate above the error; then each kernel."""
    found, info = integrated_gradients(model, x, target=y, tol=1e-3, return_info=True)
    truth = integrated_gradients(model.double(), x.double(), target=y, n_steps=200)
    model.float()
    error = (found - truth).abs().flatten(1).sum(1) - info.error
    size = info.size
    missing = info.delta.abs() / size
    measured = [
        Measurement("digits", "completeness", float(missing.max()), 1e-3),
        Measurement("digits", "error over its estimate", float((error / size).max()), 1e-5),
    ]
    for case in checks.cases(backend, x.device.type, quick=True):
        measured += case.run()
    return measured


class PathIntegralSection:
    """See the module's docstring; ``run`` takes about half a minute on two cores."""

    name = "path integrals"

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Learns, attributes, measures, judges, draws."""
        steps = _QUICK_STEPS if settings.quick else _STEPS
        points = _QUICK_POINTS if settings.quick else _POINTS
        done = 0
        total = 12

        def tell(what: str) -> None:
            nonlocal done
            progress(done, total, what)
            done += 1

        threads = torch.get_num_threads()
        if settings.device == "cpu":
            torch.set_num_threads(1)  # steps of milliseconds: threads would wait for one another
        try:
            return self._run(settings, steps, points, tell)
        finally:
            torch.set_num_threads(threads)
            progress(total, total, "done")

    def _run(self, settings: Settings, steps: int, points: tuple[int, ...], tell: Tell) -> Result:
        seed, quick = settings.seed, settings.quick
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tell("learning digits")
            x, y, test, truth = (t.to(settings.device) for t in digits(seed))
            model = train(convolutional(8, 8, 10).to(settings.device), x, y, steps, seed)
            one_each = torch.stack([(truth == d).nonzero()[0, 0] for d in range(10)])
            maps = pictures_of_digits(model, test[one_each], truth[one_each], x[:200])
            tell("comparing rules")
            count = 6 if quick else 24
            curves = convergence(model, test[:count], truth[:count], points)
            tell("a photograph")
            photo = photograph(seed, quick, settings.device)
            tell("training with a prior")
            priors = with_and_without_prior(x, y, test, truth, steps, seed)
            tell("frequencies")
            series = frequencies(steps, seed, settings.device)
            few = (slice(0, 128), slice(0, 64)) if quick else (slice(None), slice(None))
            judged, shown = judge(
                (x[few[0]], y[few[0]], test[few[1]], truth[few[1]]), steps, seed, tell
            )
            backend = _backends.resolve("path_integral", None, test)
            tell("parity")
            measured = _parity(model, test[:16], truth[:16], backend)
        result = _result(judged, shown, photo, priors, series, curves, points, measured, backend)
        result.figures = figures.draw(maps, photo, points, curves, priors, series, judged, shown)
        return result


section = PathIntegralSection()


def _result(
    judged: list[Judged],
    shown: figures.Blocks,
    photo: figures.Photograph,
    priors: figures.Priors,
    series: figures.Frequencies,
    curves: dict[str, list[float]],
    points: tuple[int, ...],
    measured: list[Measurement],
    backend: str,
) -> Result:
    passed = bool(measured) and all(m.passed for m in measured)
    verdict = "pass" if passed else "FAIL"
    rows = [
        [
            j.name, f"{100 * j.share:.0f} %", f"{100 * j.kept[0]:.0f} %",
            f"{100 * j.kept[1]:.0f} %", f"{100 * j.difference:+.0f}", f"{1e3 * j.seconds:.0f} ms",
            "—" if j.name == "chance" else verdict,
        ]
        for j in judged
    ]  # fmt: skip
    best = max(judged, key=lambda j: j.difference)
    last = {name: values[-1] for name, values in curves.items()}
    noisy = {name: values[3] for name, values in priors.accuracy.items()}
    failures = [
        f"parity failed: {m.variant}, {m.quantity} {m.max_error:.3g} (limit {m.max_limit:.3g})"
        for m in measured if not m.passed
    ]  # fmt: skip
    return Result(
        title="Path-integral gradients",
        setting=(
            "Small networks learn handwritten digits, three photographs and waves in noise; "
            "their attributions are drawn, measured against finer ones, trained on, and judged "
            "where it is known what counts: a digit beside a block that says nothing."
        ),
        finding=(
            f"The block with the digit holds {100 * best.share:.0f} % of the pixels that "
            f"{best.name} names (best by retraining: {100 * best.difference:+.0f} points between "
            f"its most and least important fifth). At {points[-1]} evaluations Gauss-Legendre is "
            f"off by {last['gausslegendre']:.1e}, the left rule by {last['riemann_left']:.1e}; "
            f"stratified places by {last['stratified places']:.1e}, random ones by "
            f"{last['random places']:.1e}. With a prior on attributions, accuracy under noise "
            f"{_NOISES[3]} goes from {100 * noisy['without']:.0f} to "
            f"{100 * noisy['with prior']:.0f} %. {100 * series.near:.0f} % of what a series "
            "network looks at lies at the two informative frequencies."
        ),
        columns=[
            "attribution", "in the block", "most kept", "least kept", "difference", "time",
            "parity",
        ],
        rows=rows,
        notes=[
            f"in the block: of the {100 * _KEEP:.0f} % of pixels with the largest attributions, "
            "those in the block with the digit; chance is half",
            f"most, least kept: accuracy of a network trained on the {100 * _KEEP:.0f} % most or "
            "least important pixels alone (DiffROAR is their difference, in points)",
            f"parity: completeness and error estimate on digits, and every kernel ({backend} "
            "backend) held to float64 arithmetic",
            *failures,
        ],
        data={
            "backend": backend,
            "blocks": [
                {"method": j.name, "share": j.share, "most": j.kept[0], "least": j.kept[1],
                 "seconds": j.seconds} for j in judged
            ],
            "block_accuracy": shown.accuracy,
            "convergence": {"points": list(points), "errors": curves},
            "photograph": {
                "accuracy": photo.accuracy, "relative_error": photo.error, "steps": photo.steps,
                "score_before": photo.score[0], "score_masked": photo.score[1],
            },
            "prior": {"noise": priors.noise, "accuracy": priors.accuracy,
                      "variation": priors.variation},
            "frequencies": {"share": series.near, "accuracy": series.accuracy,
                            "largest_delta": series.delta},
        },
        passed=passed,
    )  # fmt: skip
