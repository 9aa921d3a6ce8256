"""Peak memory of integrated gradients, ours and Captum's, on models of three kinds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.harness.timing import peak_bytes


def mlp() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return model, torch.randn(64, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    width = 3
    for channels, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [nn.Conv2d(width, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        width = channels
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return model.eval(), torch.randn(8, 3, 32, 32)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(32 * 64, 10)), torch.randn(8, 32, 64)


def peak(who: str, kind: str, n: int) -> int:
    """Most bytes that torch's allocator holds at once during a call, beyond those before it.

    Counted from the allocator's own events, so the answer is the same on every run and machine.
    """
    torch.manual_seed(0)
    model, x = {"mlp": mlp, "cnn": cnn, "transformer": transformer}[kind]()
    if who == "captum":
        from captum.attr import IntegratedGradients
    else:
        from sublimate.path_integral import IntegratedGradients  # type: ignore[assignment]
    attribution = IntegratedGradients(model)
    attribution.attribute(x, target=1, n_steps=2)  # what is kept between calls
    return peak_bytes("cpu", lambda: attribution.attribute(x, target=1, n_steps=n))
