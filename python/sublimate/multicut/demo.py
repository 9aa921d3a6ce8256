"""The dense multicut section of ``sublimate demo``: digits, a picture, and how time grows.

Digits: a small network learns through ``margin_loss`` to embed one half of the images; the other
half is clustered by its embeddings without saying how many clusters there are. The picture: each
pixel is a node whose features hold its colour and place. Time: average linkage of scikit-learn on
the same points, which needs all n x n distances.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _backends
from .._parity import Measurement
from .._report import Progress, Result, Settings
from . import checks, figures, functional, learning, reference

ALPHA, MARGIN = 0.3, 0.3
_STEPS, _QUICK_STEPS, _BATCH, _WIDTH = 500, 20, 256, 32
_PICTURE, _QUICK_PICTURE = (160, 240), (40, 60)
_SIZES, _QUICK_SIZES = (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000), (500, 1000)
_PEER_LIMIT = 10_000  # nodes: beyond, its distance matrix and copies pass a gigabyte
_CURVE_ALPHA = 0.4


@dataclass
class Clustering:
    """One method on the unseen digits. ``told``: what it had to be given."""

    name: str
    told: str
    labels: np.ndarray[Any, Any]
    seconds: float
    score: float = 0.0

    @property
    def clusters(self) -> int:
        return len(set(self.labels.tolist()) - {-1})


class Embedding(nn.Module):
    """(B, 64) images of 8 x 8 pixels -> (B, 32) unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, _WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(image), dim=1)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits in two halves: images (N, 64) in [-1, 1] and labels of each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x, y, test_size=0.5, stratify=y, random_state=seed)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in split)
    return train.float() / 8 - 1, train_labels.long(), test.float() / 8 - 1, test_labels.long()


def learn(
    images: Tensor, labels: Tensor, steps: int, seed: int, tell: Callable[[int], None]
) -> tuple[Embedding, list[float]]:
    """Trains an embedding whose best clustering is the labels; the loss of each step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Embedding().to(images.device)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        losses = []
        for step in range(steps):
            batch = torch.randint(len(images), (_BATCH,)).to(images.device)
            noisy = images[batch] + 0.3 * torch.randn(_BATCH, 64).to(images.device)
            optimizer.zero_grad()
            loss = learning.margin_loss(model(noisy), labels[batch], ALPHA, MARGIN)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            tell(step)
    return model, losses


def compare(x: Tensor, truth: Tensor) -> list[Clustering]:
    """Ours and scikit-learn's methods on the same embeddings (n, d)."""
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
    from sklearn.metrics import adjusted_rand_score

    array = x.cpu().double().numpy()
    cosine: dict[str, Any] = {"metric": "cosine", "linkage": "average"}
    methods: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "dense multicut",
            "alpha of training",
            lambda: functional.dense_multicut(x, alpha=ALPHA, restarts=4).cpu().numpy(),
        ),
        (
            "k-means",
            "10 clusters",
            lambda: KMeans(10, n_init=10, random_state=0).fit_predict(array),
        ),
        (
            "agglomerative",
            "10 clusters",
            lambda: AgglomerativeClustering(10, **cosine).fit_predict(array),
        ),
        (
            "agglomerative",
            "alpha of training",
            lambda: AgglomerativeClustering(
                None, distance_threshold=1 - ALPHA, **cosine
            ).fit_predict(array),
        ),
        ("HDBSCAN", "10 in a cluster", lambda: HDBSCAN(10, copy=True).fit_predict(array)),
    ]
    found = []
    for name, told, run in methods:
        start = time.perf_counter()
        labels = run()
        seconds = time.perf_counter() - start
        score = float(adjusted_rand_score(truth.cpu().numpy(), labels))
        found.append(Clustering(name, told, labels, seconds, score))
    return found


def pixel_features(picture: np.ndarray[Any, Any], width: int = 64, seed: int = 0) -> Tensor:
    """(h w, width) unit rows whose inner products fall off like exp(-distance^2 / 2).

    Distance is that of colour (L*a*b*, in units of 14) and place (12 pixels): random Fourier
    features of a Gaussian kernel (Rahimi and Recht, 2007).
    """
    from skimage.color import rgb2lab

    h, w = picture.shape[:2]
    y, x = np.mgrid[:h, :w]
    place = np.stack([y, x], -1).reshape(-1, 2) / 12
    points = np.concatenate([rgb2lab(picture).reshape(-1, 3) / 14, place], 1)
    frequencies = np.random.default_rng(seed).standard_normal((5, width // 2))
    phase = torch.from_numpy(points @ frequencies).float()
    return torch.cat([phase.cos(), phase.sin()], 1) / (width // 2) ** 0.5


def segment(shape: tuple[int, int], device: str) -> figures.Segments:
    """Superpixels of scikit-image's coffee cup."""
    from skimage import data
    from skimage.transform import resize

    picture = resize(data.coffee(), shape, anti_aliasing=True)
    x = pixel_features(picture).to(device)
    start = time.perf_counter()
    labels = functional.dense_multicut(x, alpha=0.4)
    seconds = time.perf_counter() - start
    return figures.Segments(picture, labels.reshape(shape).cpu().numpy(), seconds)


def mixture(n: int, d: int = 32) -> Tensor:
    """(n, d) unit rows around sqrt(n) centres."""
    rng = np.random.Generator(np.random.PCG64(0))
    centres = rng.standard_normal((round(n**0.5), d))
    x = centres[rng.integers(0, len(centres), size=n)] + 0.7 * rng.standard_normal((n, d))
    return torch.from_numpy((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))


def curve(sizes: tuple[int, ...], device: str, tell: Callable[[int], None]) -> list[figures.Point]:
    """Seconds and cost of ours and of scikit-learn's average linkage by size."""
    from sklearn.cluster import AgglomerativeClustering

    points = []
    for i, n in enumerate(sizes):
        tell(i)
        x = mixture(n).to(device)
        start = time.perf_counter()
        labels = functional.dense_multicut(x, alpha=_CURVE_ALPHA)
        ours = time.perf_counter() - start
        cost = float(functional.objective(x, labels, _CURVE_ALPHA))
        peer = peer_cost = None
        if n <= _PEER_LIMIT:
            model = AgglomerativeClustering(
                None, metric="cosine", linkage="average", distance_threshold=1 - _CURVE_ALPHA
            )
            start = time.perf_counter()
            found = model.fit_predict(x.cpu().numpy())
            peer = time.perf_counter() - start
            theirs = torch.from_numpy(found.astype(np.int64)).to(device)
            peer_cost = float(functional.objective(x, theirs, _CURVE_ALPHA))
        points.append(figures.Point(n, ours, cost, peer, peer_cost))
    return points


def _parity(x: Tensor, labels: Tensor, backend: str) -> list[Measurement]:
    """On the digits: the cost by its definition, the bound below it; then each kernel."""
    values = reference.pair_values(x.cpu().double(), None, ALPHA)
    truth = reference.objective(values, labels)
    cost = float(functional.objective(x, labels.to(x.device), ALPHA))
    bound = float(functional.lower_bound(x, ALPHA, labels=labels.to(x.device)))
    found = [
        Measurement("digits", "cost", abs(cost - float(truth)), 1e-9 * abs(float(truth))),
        Measurement("digits", "bound", max(bound - cost, 0.0), 1e-5 * abs(cost)),
    ]
    for case in checks.cases(backend, x.device.type, quick=True):
        found += case.run()
    return found


class MulticutSection:
    """See the module's docstring; ``run`` takes about half a minute on two cores."""

    name = "dense multicut"

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Learns, clusters, segments, measures, draws."""
        steps = _QUICK_STEPS if settings.quick else _STEPS
        sizes = _QUICK_SIZES if settings.quick else _SIZES
        shape = _QUICK_PICTURE if settings.quick else _PICTURE
        total = steps + 60 + 20 * len(sizes)
        functional.dense_multicut(torch.zeros(2, 2, device=settings.device))  # loads the kernels
        train, train_labels, test, truth = (t.to(settings.device) for t in digits(settings.seed))
        before = torch.get_num_threads()
        if settings.device == "cpu":
            torch.set_num_threads(1)  # steps of milliseconds: threads would wait for one another
        try:
            model, losses = learn(
                train,
                train_labels,
                steps,
                settings.seed,
                lambda step: progress(step, total, "learning to embed digits"),
            )
        finally:
            torch.set_num_threads(before)
        progress(steps, total, "clustering digits")
        with torch.no_grad():
            x = model(test)
        found = compare(x, truth)
        progress(steps + 30, total, "segmenting a picture")
        segments = segment(shape, settings.device)
        points = curve(
            sizes,
            settings.device,
            lambda i: progress(steps + 60 + 20 * i, total, f"{sizes[i]:,} nodes"),
        )
        backend = _backends.resolve("multicut", None, x)
        labels = torch.from_numpy(found[0].labels)
        measurements = _parity(x, labels, backend)
        bound = float(functional.lower_bound(x, ALPHA, labels=labels.to(x.device)))
        cost = float(functional.objective(x, labels.to(x.device), ALPHA))
        gap = (cost - bound) / abs(cost) if cost else 0.0
        result = _result(found, segments, points, measurements, gap, losses, backend)
        result.figures = figures.draw(
            test.cpu().reshape(-1, 8, 8), truth.cpu(), labels, segments, points
        )
        progress(total, total, "done")
        return result


section = MulticutSection()


def _result(
    found: list[Clustering],
    segments: figures.Segments,
    points: list[figures.Point],
    measurements: list[Measurement],
    gap: float,
    losses: list[float],
    backend: str,
) -> Result:
    passed = bool(measurements) and all(m.passed for m in measurements)
    ours = found[0]
    rows = [
        [
            c.name,
            c.told,
            str(c.clusters),
            f"{c.score:.3f}",
            f"{1e3 * c.seconds:.0f} ms",
            ("pass" if passed else "FAIL") if c is ours else "—",
        ]
        for c in found
    ]
    both = [p for p in points if p.peer is not None]
    last = both[-1]
    assert last.peer is not None
    largest = points[-1]
    h, w = segments.labels.shape
    noise = int((found[-1].labels == -1).sum())
    failures = [
        f"parity failed: {m.variant}, {m.quantity} {m.max_error:.3g} (limit {m.max_limit:.3g})"
        for m in measurements
        if not m.passed
    ]
    return Result(
        title="Dense multicut",
        setting=(
            f"A small network learns through the structured loss to embed half of the handwritten "
            f"digits ({len(losses)} steps); the other {len(ours.labels)}, never seen, are "
            f"clustered by their embeddings. Also {h * w:,} pixels of a picture, and time by size."
        ),
        finding=(
            f"Not told the number of clusters, it finds {ours.clusters} and agrees with the true "
            f"digits to {ours.score:.3f} (adjusted Rand index; k-means, told ten, "
            f"{found[1].score:.3f}), within {100 * gap:.2g} % of a proven bound. {h * w:,} pixels "
            f"take {segments.seconds:.1f} s, {largest.n:,} nodes {largest.ours:.1f} s; at "
            f"{last.n:,} nodes scikit-learn's average linkage takes {last.peer / last.ours:.0f} "
            "times as long."
        ),
        columns=["method", "told", "clusters found", "Rand index", "time", "parity"],
        rows=rows,
        notes=[
            "Rand index: adjusted for chance; 1 is the true digits, 0 is chance",
            f"HDBSCAN leaves {noise} images without a cluster; they count as one more",
            f"parity: cost, bound and every kernel's decisions ({backend} backend) held to float64 "
            "arithmetic",
            *failures,
        ],
        data={
            "backend": backend,
            "digits": [
                {
                    "method": c.name,
                    "told": c.told,
                    "clusters": c.clusters,
                    "adjusted_rand_index": c.score,
                    "seconds": c.seconds,
                }
                for c in found
            ],
            "gap": gap,
            "losses": losses,
            "picture": {
                "nodes": h * w,
                "segments": int(segments.labels.max()) + 1,
                "seconds": segments.seconds,
            },
            "scaling": [vars(p) for p in points],
        },
        passed=passed,
    )
