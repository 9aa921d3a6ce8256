"""Hugging Face's Trainer on RoBERTa-, Llama- and ViT-shaped models with our layers inside.

Before training, ``fewbit.convert`` and ``randomized_linear.convert`` replace activations and linear
layers; then everything is the Trainer's own: gradient checkpointing, checkpoints, resuming. The
weights are random, nothing is downloaded.

Run: python examples/huggingface_trainer.py          (about 20 seconds on two cores)
"""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from sublimate import fewbit, memory, randomized_linear
from torch import Tensor, nn
from torch.utils.data import Dataset

STEPS, BATCH = 24, 16
Sample = dict[str, Tensor]


class Samples(Dataset[Sample]):
    """Arguments of the model by name, one row a sample."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> Sample:
        return {name: value[index] for name, value in self.tensors.items()}


def roberta(generator: torch.Generator) -> tuple[nn.Module, Samples]:
    """Which half of the vocabulary does a sentence take most of its words from?"""
    config = transformers.RobertaConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=40, type_vocab_size=1, num_labels=2,
    )  # fmt: skip
    side = torch.randint(2, (512,), generator=generator)
    words = torch.randint(5, 52, (512, 32), generator=generator)
    move = torch.rand(512, 32, generator=generator) < 0.2 + 0.6 * side[:, None]
    data = Samples(input_ids=words + 47 * move, labels=side)
    return transformers.RobertaForSequenceClassification(config), data


def llama(generator: torch.Generator) -> tuple[nn.Module, Samples]:
    """The next number of a row that counts on in steps, modulo 48."""
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=192, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    start, by = torch.randint(48, (2, 512, 1), generator=generator)
    ids = (start + (1 + by % 3) * torch.arange(32)) % 48
    return transformers.LlamaForCausalLM(config), Samples(input_ids=ids, labels=ids)


def vit(generator: torch.Generator) -> tuple[nn.Module, Samples]:
    """Stripes across, stripes down, chequers or nothing, in noise."""
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, num_labels=4,
    )  # fmt: skip
    kind = torch.randint(4, (512,), generator=generator)
    across = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16)
    patterns = torch.stack([across, across.T, across * across.T, 0 * across])[:, None]
    images = patterns[kind] + torch.randn(512, 1, 16, 16, generator=generator)
    return (
        transformers.ViTForImageClassification(config),
        Samples(pixel_values=images, labels=kind),
    )


MODELS = {"RoBERTa": roberta, "Llama": llama, "ViT": vit}


def train(
    model: nn.Module, data: Samples, folder: Path, resume: str | None = None
) -> tuple[list[float], nn.Module]:
    """The Trainer's losses (mean of every 6 steps), with gradient checkpointing on."""
    model.activation_checkpointing_enable()  # gradient_checkpointing_enable() in older releases
    # By default some models' weights are saved under older names, which the Trainer's resuming does
    # not find in the model again (transformers 5.23, ViT; with our layers or without).
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH,
        learning_rate=2e-3, lr_scheduler_type="constant", logging_steps=6,
        save_steps=STEPS // 2, use_cpu=True, report_to=[], disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.pop_callback(transformers.PrinterCallback)  # this script prints its own table
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


def convert(model: nn.Module) -> None:
    """3-bit activations; linear layers that keep a fifth of their rows, all but the head's."""
    fewbit.convert(model, bits=3)
    randomized_linear.convert(model, ratio=0.2, exclude=("*classifier*", "lm_head"))


def try_model(name: str, folder: Path) -> dict[str, Any]:
    """Trains one of ``MODELS`` exactly and converted; returns what there is to say about it."""
    torch.manual_seed(0)
    exact, data = MODELS[name](torch.Generator().manual_seed(0))
    batch = {key: value[:BATCH] for key, value in data.tensors.items()}
    names = {key: type(module) for key, module in exact.named_modules()}

    model = copy.deepcopy(exact)
    convert(model)
    kept = [int(memory.saved_bytes(m.train(), **batch)) for m in (exact, model)]
    model.activation_checkpointing_enable()
    kept.append(int(memory.saved_bytes(model, **batch)))
    losses, _ = train(exact, data, folder / "exact")
    converted, _ = train(model, data, folder / "converted")

    # A second run, from the checkpoint of the middle, ends with the very same weights: the count
    # that seeds the sketches is part of the state.
    torch.manual_seed(0)
    again, _ = MODELS[name](torch.Generator().manual_seed(0))
    convert(again)
    middle = folder / "converted" / f"checkpoint-{STEPS // 2}"
    train(again, data, folder / "again", str(middle))
    due = model.state_dict()
    same = all(torch.equal(value, due[key]) for key, value in again.state_dict().items())

    # Trained, then back to the classes the library knows: same parameters, same output.
    with torch.no_grad():
        before = model.eval()(**batch).logits
        randomized_linear.restore(model)
        fewbit.restore(model)
        after = model(**batch).logits
    return {
        "kept": kept, "losses": losses, "converted": converted, "resumed equal": same,
        "restored": {key: type(module) for key, module in model.named_modules()} == names,
        "difference": float((after - before).abs().max()),
    }  # fmt: skip


def main() -> dict[str, dict[str, Any]]:
    transformers.utils.logging.disable_progress_bar()
    results = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found = results[name] = try_model(name, Path(folder))
        curves = found["losses"], found["converted"]
        exact, ours = (f"{losses[0]:.3f} -> {losses[-1]:.3f}" for losses in curves)
        kept = " -> ".join(f"{n / 2**20:.2f} MiB" for n in found["kept"])
        print(f"{name:8s} loss {exact} exact, {ours} converted")
        print(f"{'':8s} kept for backward: {kept} (exact, converted, checkpointed too)")
        print(f"{'':8s} resumed run equal: {found['resumed equal']}; restored: {found['restored']}")
    return results


if __name__ == "__main__":
    main()
