"""The few-bit section of ``sublimate demo``: a small vision transformer on handwritten digits.

Five copies of one model, from the same weights and over the same batches, are trained side by side:
one with torch's GELU, four with ours at 1 to 4 bits. They take turns on every batch, in rotating
order, so that step times meet the same machine.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backends, memory
from .._parity import Measurement
from .._report import Progress, Result, Settings
from . import checks, figures
from .convert import convert
from .modules import FewBitActivation

BITS = (1, 2, 3, 4)
_WIDTH, _DEPTH, _HEADS = 64, 4, 4
_BATCH, _EPOCHS, _RATE = 64, 16, 2e-3
_QUICK_EPOCHS, _QUICK_IMAGES = 2, 512


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP with GELU. (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(mixed)
        mlp: Tensor = self.mlp(self.norm2(x))
        return x + mlp


class DigitTransformer(nn.Module):
    """(B, 8, 8) images as 16 patches of 2 x 2 pixels -> (B, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, _WIDTH)
        # Patches differ little from one another, so positions start as large as contents.
        self.position = nn.Parameter(torch.randn(16, _WIDTH))
        self.blocks = nn.Sequential(*(Block(_WIDTH, _HEADS) for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        b = image.shape[0]
        patches = image.reshape(b, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(b, 16, 4)
        tokens = self.blocks(self.embed(patches) + self.position)
        scores: Tensor = self.head(self.norm(tokens).mean(1))
        return scores


@dataclass
class Run:
    """One copy in training. ``bits`` None: torch's own GELU."""

    bits: int | None
    model: DigitTransformer
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)  # mean of each epoch
    accuracies: list[float] = field(default_factory=list)  # on test images, after each epoch
    seconds: list[float] = field(default_factory=list)  # of each step
    kept: int = 0
    kept_by_gelu: int = 0
    gradient_error: float = 0.0
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "exact" if self.bits is None else f"{self.bits} bit{'s' if self.bits > 1 else ''}"

    @property
    def step(self) -> float:
        return statistics.median(self.seconds)

    @property
    def passed(self) -> bool:
        if self.bits is None:
            return True
        return bool(self.measurements) and all(m.passed for m in self.measurements)

    def train(self, images: Tensor, labels: Tensor) -> float:
        """One step; returns the loss. Only this is timed."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        return loss.item()


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits: training and test images (N, 8, 8) in [-1, 1], and their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in split)
    images = [(t.float() / 8 - 1).reshape(-1, 8, 8) for t in (train, test)]
    return images[0], train_labels.long(), images[1], test_labels.long()


def _runs(seed: int, steps: int, device: str) -> list[Run]:
    """The copies, from one set of initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initial = DigitTransformer().to(device)
    runs = []
    for bits in (None, *BITS):
        model = copy.deepcopy(initial)
        if bits is not None:
            convert(model, bits=bits)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        runs.append(Run(bits, model, optimizer, schedule))
    return runs


def _threads(seed: int, images: Tensor, labels: Tensor) -> int:
    """The faster of one thread and all, by a few steps of an exact copy.

    The model is small: where other programs keep the cores busy, threads that wait for one another
    can make a step ten times as long.
    """
    most = torch.get_num_threads()
    took = {}
    for count in {1, most}:
        torch.set_num_threads(count)
        trial = _runs(seed, 8, "cpu")[0]
        for _ in range(6):
            trial.train(images, labels)
        took[count] = statistics.median(trial.seconds[1:])
    return min(took, key=lambda count: took[count])


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def _is_gelu(module: nn.Module) -> bool:
    return isinstance(module, (nn.GELU, FewBitActivation))


def _parity(model: nn.Module, images: Tensor, labels: Tensor) -> list[Measurement]:
    """Each activation layer, on what it sees in a training step, against float64."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, FewBitActivation):
            continue

        def watch(_: nn.Module, args: tuple[Tensor], y: Tensor, name: str = name) -> None:
            seen[name] = [args[0].detach()]
            y.register_hook(lambda dy: seen[name].append(dy.detach()))

        handles.append(module.register_forward_hook(watch))
    F.cross_entropy(model(images), labels).backward()
    for handle in handles:
        handle.remove()
    found = []
    for name, (x, dy) in seen.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, FewBitActivation)
        found += checks.activation(name, layer, layer.codebook, x, dy)
    return found


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """All parameters' gradients in one vector."""
    loss = F.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def _measure(runs: list[Run], images: Tensor, labels: Tensor) -> None:
    """Memory, error of the whole gradient at the exact model's weights, and parity."""
    exact = runs[0].model
    truth = _gradient(exact, images, labels)
    for run in runs:
        saved = memory.saved_bytes(run.model, images)
        gelus = {name for name, module in run.model.named_modules() if _is_gelu(module)}
        run.kept = int(saved)
        run.kept_by_gelu = sum(n for name, n in saved.per_module.items() if name in gelus)
        if run.bits is None:
            continue
        twin = copy.deepcopy(exact)
        convert(twin, bits=run.bits)
        error = (_gradient(twin, images, labels) - truth).norm() / truth.norm()
        run.gradient_error = float(error)
        run.measurements = _parity(run.model, images, labels)


class FewBitSection:
    """See the module's docstring; ``run`` takes about a minute on two cores."""

    name = "few-bit activations"

    def run(self, settings: Settings, progress: Progress) -> Result:
        """Trains, measures and draws; torch's thread count is what it was afterwards."""
        before = torch.get_num_threads()
        data = digits(settings.seed)
        images, labels, test, test_labels = (t.to(settings.device) for t in data)
        if settings.quick:
            images, labels = images[:_QUICK_IMAGES], labels[:_QUICK_IMAGES]
        if settings.device == "cpu":
            torch.set_num_threads(_threads(settings.seed, images[:_BATCH], labels[:_BATCH]))
        try:
            return self._run(settings, progress, images, labels, test, test_labels)
        finally:
            torch.set_num_threads(before)

    def _run(
        self,
        settings: Settings,
        progress: Progress,
        images: Tensor,
        labels: Tensor,
        test: Tensor,
        test_labels: Tensor,
    ) -> Result:
        epochs = _QUICK_EPOCHS if settings.quick else _EPOCHS
        per_epoch = len(labels) // _BATCH
        steps = epochs * per_epoch
        runs = _runs(settings.seed, steps, settings.device)
        order = torch.Generator().manual_seed(settings.seed)
        done = 0
        for epoch in range(epochs):
            shuffled = torch.randperm(len(labels), generator=order)
            sums = dict.fromkeys((r.name for r in runs), 0.0)
            for batch in shuffled[: per_epoch * _BATCH].split(_BATCH):
                turn = done % len(runs)
                for run in runs[turn:] + runs[:turn]:
                    sums[run.name] += run.train(images[batch], labels[batch])
                done += 1
                progress(done, steps + 1, f"epoch {epoch + 1} of {epochs}")
            for run in runs:
                run.losses.append(sums[run.name] / per_epoch)
                run.accuracies.append(_accuracy(run.model, test, test_labels))
        progress(steps, steps + 1, "measuring memory and errors")
        _measure(runs, images[:_BATCH], labels[:_BATCH])
        result = _result(runs, len(labels), len(test_labels), epochs)
        progress(steps + 1, steps + 1, "done")
        return result


section = FewBitSection()


# ------------------------------------------------------------------------------------- results


def _size(n: int) -> str:
    return f"{n / 2**20:.2f} MiB" if n >= 2**20 else f"{n / 2**10:.0f} KiB"


def _verdict(run: Run) -> str:
    return "—" if run.bits is None else "pass" if run.passed else "FAIL"


def _result(runs: list[Run], trained: int, tested: int, epochs: int) -> Result:
    exact, three = runs[0], next(r for r in runs if r.bits == 3)
    rows = [
        [
            r.name,
            f"{100 * r.accuracies[-1]:.1f} %",
            _size(r.kept),
            _size(r.kept_by_gelu),
            f"{1e3 * r.step:.1f} ms",
            f"{r.step / exact.step:.2f}x",
            "0" if r.bits is None else f"{100 * r.gradient_error:.1f} %",
            _verdict(r),
        ]
        for r in runs
    ]
    device = next(exact.model.parameters()).device
    backend = _backends.resolve("fewbit", None, torch.zeros(1, device=device))
    count = torch.get_num_threads()
    where = "the GPU" if device.type == "cuda" else f"{count} CPU thread{'s' * (count > 1)}"
    data = {
        "backend": backend,
        "device": str(device),
        "threads": count,
        "epochs": epochs,
        "modes": [
            {
                "mode": r.name,
                "bits": r.bits,
                "accuracy": r.accuracies[-1],
                "kept_bytes": r.kept,
                "kept_by_activations_bytes": r.kept_by_gelu,
                "step_seconds": r.step,
                "step_ratio": r.step / exact.step,
                "gradient_error": r.gradient_error,
                "parity": None if r.bits is None else r.passed,
                "losses": r.losses,
                "accuracies": r.accuracies,
            }
            for r in runs
        ],
    }
    failures = [
        f"parity failed: {r.name}, layer {m.variant}, {m.quantity} {m.max_error:.3g} "
        f"(limit {m.max_limit:.3g})"
        for r in runs
        for m in r.measurements
        if not m.passed
    ]
    return Result(
        title="Few-bit activations",
        setting=(
            f"A vision transformer ({_DEPTH} blocks, width {_WIDTH}) learns handwritten digits "
            f"({trained} images of 8 x 8 pixels) for {epochs} epochs in batches of {_BATCH}; "
            f"tested on {tested} others. Same initial weights and batches in every row."
        ),
        finding=(
            f"With 3 bits the GELU layers keep {exact.kept_by_gelu / three.kept_by_gelu:.1f} times "
            f"less ({_size(exact.kept_by_gelu)} to {_size(three.kept_by_gelu)}), the whole model "
            f"{100 * (1 - three.kept / exact.kept):.0f} % less, at "
            f"{100 * three.accuracies[-1]:.1f} % accuracy against "
            f"{100 * exact.accuracies[-1]:.1f} % and {three.step / exact.step:.2f} times the step."
        ),
        columns=[
            "mode",
            "test accuracy",
            "kept, model",
            "kept, GELU",
            "step",
            "step ratio",
            "gradient error",
            "parity",
        ],
        rows=rows,
        notes=[
            "kept: bytes held from forward to backward for one batch, in the whole model and in "
            "its GELU layers alone",
            f"step: median time of one training step on {where}; ratio to exact",
            "gradient error: relative difference of the whole model's gradient from the exact one, "
            "at the same trained weights",
            f"parity: every GELU layer's results ({backend} backend) held to float64 arithmetic",
            *failures,
        ],
        figures=figures.draw(
            epochs,
            {r.name: (r.losses, r.accuracies) for r in runs},
            {r.name: (r.kept_by_gelu, r.kept - r.kept_by_gelu) for r in runs},
            BITS,
        ),
        data=data,
        passed=all(r.passed for r in runs),
    )
