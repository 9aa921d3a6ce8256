"""Lightning: a callback that converts the model before training and restores it afterwards.

Run: python examples/lightning_callback.py          (about 10 seconds on two cores)
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from sublimate import fewbit, memory, randomized_linear
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 4


class Sublimate(lightning.Callback):
    """Few-bit activations and sketched linear layers while the model trains.

    Args:
        bits, ratio, exclude: as in ``fewbit.convert`` and ``randomized_linear.convert``.
    """

    def __init__(self, bits: int = 3, ratio: float = 0.2, exclude: Any = None) -> None:
        self.bits, self.ratio, self.exclude = bits, ratio, exclude

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Before the optimizer is made and a checkpoint loaded."""
        if stage == "fit":
            fewbit.convert(pl_module, self.bits)
            randomized_linear.convert(pl_module, self.ratio, exclude=self.exclude)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """The parameters are the same objects: what was trained stays trained."""
        if stage == "fit":
            randomized_linear.restore(pl_module)
            fewbit.restore(pl_module)


class Classifier(lightning.LightningModule):
    """An MLP that also notes what a batch keeps for backward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 4)
        )
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def fit(
    folder: Path, epochs: int, callbacks: list[lightning.Callback], resume: Path | None = None
) -> tuple[Classifier, lightning.Trainer]:
    """The same weights and batches every time; batches depend on the epoch's number alone."""
    lightning.seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (1024,), generator=generator)
    x = torch.randn(1024, 32, generator=generator) + 1.5 * torch.eye(4, 32)[label]
    model = Classifier()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(x, label), 128), ckpt_path=resume)
    return model, trainer


def kept(sublimate: Sublimate | None) -> int:
    """Bytes that one batch keeps for backward."""
    torch.manual_seed(0)
    model = Classifier()
    if sublimate is not None:
        sublimate.setup(None, model, "fit")
    return int(memory.saved_bytes(model.net, torch.randn(128, 32)))


def main() -> dict[str, Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (".*not have many workers", "Checkpoint directory", "The dirpath has changed"):
        warnings.filterwarnings("ignore", message=message)
    options = {"bits": 3, "ratio": 0.25, "exclude": "*.4"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact, _ = fit(folder, EPOCHS, [])
        keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        model, _ = fit(folder, EPOCHS, [Sublimate(**options), keep])
        half = folder / f"epoch={EPOCHS // 2 - 1}.ckpt"
        again, _ = fit(folder, EPOCHS, [Sublimate(**options)], resume=half)
    due = model.state_dict()
    found = {
        "losses": (exact.losses, model.losses),
        "kept": (kept(None), kept(Sublimate(**options))),
        "restored": [type(m) for m in model.modules()] == [type(m) for m in exact.modules()],
        "resumed equal": all(torch.equal(v, due[k]) for k, v in again.state_dict().items()),
    }
    for what, losses, size in zip(("exact", "converted"), found["losses"], found["kept"],
                                  strict=True):  # fmt: skip
        print(f"{what:9s} loss {losses[0]:.3f} -> {losses[-1]:.3f}, keeps {size / 1024:.0f} KiB")
    print(f"restored: {found['restored']}; resumed run equal: {found['resumed equal']}")
    return found


if __name__ == "__main__":
    main()
