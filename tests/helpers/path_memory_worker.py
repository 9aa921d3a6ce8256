"""Peak memory of one call, in a process of its own: prints the bytes above what was there before.

python path_memory_worker.py ours|captum MODEL N_STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn


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


def resident(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def main(who: str, kind: str, n: int) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model, x = {"mlp": mlp, "cnn": cnn, "transformer": transformer}[kind]()
    if who == "captum":
        from captum.attr import IntegratedGradients
    else:
        from sublimate.path_integral import IntegratedGradients  # type: ignore[assignment]
    attribution = IntegratedGradients(model)
    attribution.attribute(x, target=1, n_steps=2)  # libraries, thread pools, first buffers
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    attribution.attribute(x, target=1, n_steps=n)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
