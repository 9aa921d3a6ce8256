"""A RoBERTa-base-shaped encoder of the transformers library, random weights, 32 x 128 tokens.

The published reductions (RoBERTa-base on MRPC): 13.8 % by 3-bit GELU, 18.6 % by sketches of ratio
0.2, 32.7 % by both. What the stack of layers keeps is counted on three of its twelve layers, which
are all alike; the peak, to which the working memory of one layer adds, on all twelve.
"""

from __future__ import annotations

import gc

import pytest
import torch
from sublimate import fewbit, memory, randomized_linear
from torch.profiler import ProfilerActivity, profile

transformers = pytest.importorskip(
    "transformers", reason="pip install -c constraints.txt transformers"
)
pytestmark = pytest.mark.slow
LAYERS = 3
PUBLISHED = {"few-bit": 0.138, "sketch": 0.186, "both": 0.327}


def model(layers=LAYERS):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(num_hidden_layers=layers, type_vocab_size=1)
    config.vocab_size = 1000  # of the embedding, whose weights say nothing of activations
    return transformers.RobertaModel(config, add_pooling_layer=False).train()


def tokens():
    return torch.randint(5, 1000, (32, 128), generator=torch.Generator().manual_seed(1))


def of_layers(saved):
    return sum(n for name, n in saved.per_module.items() if name.startswith("encoder.layer"))


def test_saved_bytes():
    m, ids = model(), tokens()
    exact = of_layers(memory.saved_bytes(m, input_ids=ids))
    report = fewbit.convert(m, 3)
    assert len(report.replaced) == LAYERS
    found = {"few-bit": of_layers(memory.saved_bytes(m, input_ids=ids))}
    fewbit.restore(m)
    report = randomized_linear.convert(m, 0.2)
    assert len(report.replaced) == 6 * LAYERS and len(report.shared) == LAYERS
    found["sketch"] = of_layers(memory.saved_bytes(m, input_ids=ids))
    fewbit.convert(m, 3)
    found["both"] = of_layers(memory.saved_bytes(m, input_ids=ids))
    for choice, bytes_kept in found.items():
        assert 1 - bytes_kept / exact >= PUBLISHED[choice], choice


def peak(m, ids):
    """Most activation bytes alive at once in a forward pass: what backward starts with."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        out = m(input_ids=ids).last_hidden_state
    del out
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_peak_falls_too():
    m, ids = model(layers=12), tokens()
    exact = peak(m, ids)
    randomized_linear.convert(m, 0.2)
    fewbit.convert(m, 3)
    assert 1 - peak(m, ids) / exact >= PUBLISHED["both"]


def test_llama_blocks_share_their_inputs():
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50,
    )  # fmt: skip
    m = transformers.LlamaForCausalLM(config)
    report = randomized_linear.convert(m, 0.2, exclude="lm_head")
    assert len(report.replaced) == 14
    assert [len(names) for names in report.shared] == [3, 2, 3, 2] or sorted(
        len(names) for names in report.shared
    ) == [2, 2, 3, 3]
    ids = torch.randint(0, 50, (4, 16))
    out = m(input_ids=ids, labels=ids)
    out.loss.backward()
    assert all(p.grad is not None for p in m.parameters())
    saved = memory.saved_bytes(m, input_ids=ids, labels=ids).per_module
    layer = "model.layers.0."
    assert {n for n in saved if n.startswith(layer) and n.endswith("proj")} == {
        layer + "self_attn.q_proj", layer + "self_attn.o_proj", layer + "mlp.gate_proj",
        layer + "mlp.down_proj",
    }  # fmt: skip
