"""Every script of examples/ runs, and what those around other libraries promise holds.

Those of the families are run with a tenth of their training steps: here for their calls, not for
their numbers.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FAMILIES = {
    "fewbit": "kept for backward",
    "kronecker_attention": "over pairs of keys",
    "multicut": "no clustering costs less",
    "path_integral": "all classes: (10, 40, 1, 8, 8)",
    "randomized_linear": "srht at 0.2 and 3-bit GELU",
}
#: Those below, by the packages they are about.
OTHERS = {
    "attribution_metrics": ("quantus", "captum"),
    "distributed_training": (),
    "huggingface_trainer": ("transformers", "accelerate"),
    "lightning_callback": ("lightning",),
    "sklearn_pipeline": ("sklearn",),
}


@pytest.fixture(autouse=True)
def one_thread():
    """The models are small: waiting for other threads would cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(name):
    """The script as a module; all its packages are in the extra "test"."""
    return importlib.import_module(f"examples.{name}")


def test_all_are_run_here():
    assert {p.stem for p in EXAMPLES.glob("*.py")} == {*FAMILIES, *OTHERS}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, monkeypatch, capsys):
    example = load(name)
    train = getattr(example, "train", None)
    if train is not None:
        steps = inspect.signature(train).parameters["steps"].default
        others = train.__defaults__[:-1]
        monkeypatch.setattr(train, "__defaults__", (*others, steps // 10))
    example.main()
    assert FAMILIES[name] in capsys.readouterr().out


def test_transformers():
    """RoBERTa, Llama and ViT under the Trainer, with gradient checkpointing."""
    results = load("huggingface_trainer").main()
    assert list(results) == ["RoBERTa", "Llama", "ViT"]
    for name, found in results.items():
        exact, converted, checkpointed = found["kept"]
        assert converted < 0.75 * exact, name
        assert checkpointed < 0.5 * converted, name
        for losses in (found["losses"], found["converted"]):
            assert losses[-1] < 0.7 * losses[0], (name, losses)
        assert found["resumed equal"] and found["restored"], name
        # Forward is exact in evaluation, so only rounding tells the classes apart.
        assert found["difference"] < 1e-5, name


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this torch was built without gloo; install a build that has it",
)
def test_ddp_and_fsdp2():
    first, second = load("distributed_training").main()
    for kind, found in first.items():
        exact, converted = found["kept"]
        assert converted < 0.4 * exact
        assert found["losses"][-1] < 0.7 * found["losses"][0]
        assert found["losses"] == second[kind]["losses"]
        for name, value in found["weights"].items():
            assert torch.equal(value, second[kind]["weights"][name]), (kind, name)
    # Both wrappers average the same gradients, of the same sketches, in another order.
    for name, value in first["DDP"]["weights"].items():
        torch.testing.assert_close(value, first["FSDP2"]["weights"][name], rtol=0, atol=1e-3)


def test_lightning():
    found = load("lightning_callback").main()
    for losses in found["losses"]:
        assert losses[-1] < 0.6 * losses[0]
    exact, converted = found["kept"]
    assert converted < 0.4 * exact
    assert found["restored"] and found["resumed equal"]


def test_quantus_and_captum():
    """Same rule, same nodes: their scores of ours are those of Captum's own class."""
    pytest.importorskip(
        "cv2",
        reason="Quantus' OpenCV needs a system library that pip cannot bring: apt install libgl1",
        exc_type=ImportError,
    )
    scores = load("attribution_metrics").main()
    for metric, found in scores.items():
        assert found["sublimate"] == pytest.approx(found["captum"], rel=1e-3), metric
    for metric in ("faithfulness", "sparseness"):
        assert scores[metric]["sublimate"] > scores[metric]["random"] + 0.2


def test_scikit_learn():
    found = load("sklearn_pipeline").main()
    assert len(found["scores"]) == 10 and found["same again"]
    by_alpha = {p["cluster__alpha"]: s for p, s in zip(found["params"], found["scores"],
                                                       strict=True)}  # fmt: skip
    assert found["best"] == max(by_alpha, key=by_alpha.get)
    assert max(found["scores"]) > min(found["scores"]) + 0.2
    assert found["multicut"] > found["k-means"]
