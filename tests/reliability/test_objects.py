"""Copies and files of everything public that holds state, and files that were damaged."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from reliability.judge import tensors
from sublimate import fewbit, memory, multicut
from sublimate import kronecker_attention as ka
from sublimate import path_integral as pi
from sublimate import randomized_linear as rl
from torch import nn


def scores(x):
    flat = x.reshape(x.shape[0], -1)
    return torch.stack([flat.sin().sum(1), flat.square().sum(1)], 1)


def _x(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))


def _converted():
    model = _mlp()
    fewbit.convert(model)
    rl.convert(model, 0.5)
    return model


def _qkv():
    q = _x(1, 2, 5, 4)
    return q, (q + 1, q - 1), (q * 2, q * 3)


def _certificate():
    q, keys, _ = _qkv()
    return ka.certificate(q, keys, 0.1)


def _plan():
    q, keys, values = _qkv()
    return ka.choose(q, *keys, *values, tol=0.1)


def _estimator():
    return multicut.DenseMulticut(n_clusters=2).fit(_x(9, 3).numpy())


def _noise():
    return rl.noise_report(_converted(), [_x(3, 4)] * 3, loss=lambda m, x: m(x).square().mean())


def _info(function, *arguments, **options):
    return function(*arguments, return_info=True, **options)[-1]


MODULES = {
    **{n: getattr(fewbit, n) for n in fewbit.__all__
       if isinstance(getattr(fewbit, n), type) and issubclass(getattr(fewbit, n), nn.Module)
       and n not in ("Threshold", "GEGLU", "SwiGLU")},
    "Threshold": lambda: fewbit.Threshold(0.1, 0.0),
    "randomized Linear": lambda: rl.Linear(4, 3),
    "randomized Conv2d": lambda: rl.Conv2d(2, 3),
    "KroneckerAttention": lambda: ka.KroneckerAttention(8, 2),
    "converted": _converted,
}  # fmt: skip
#: Name -> how it is made: reports, plans, certificates, codebooks, results and estimators.
OBJECTS = {
    "Codebook": lambda: fewbit.fit_codebook("silu", 2),
    "Codebook of a callable": lambda: fewbit.fit_codebook(torch.sin, 2),
    "GatedCodebook": lambda: fewbit.fit_gated_codebook("silu", 2),
    "convert's Report": lambda: fewbit.convert(_mlp()),
    "randomized convert's Report": lambda: rl.convert(_mlp()),
    "NoiseReport": _noise,
    "SharedInput": lambda: rl.shared_input(_x(6, 4), seed=1),
    "Certificate": _certificate,
    "attention Plan": _plan,
    "memory Plan": lambda: memory.plan(_mlp(), _x(3, 4)),
    "SavedBytes": lambda: memory.saved_bytes(_mlp(), _x(3, 4)),
    "AlphaPath": lambda: multicut.alpha_path(_x(9, 3)),
    "MulticutInfo": lambda: _info(multicut.dense_multicut, _x(9, 3)),
    "DenseMulticut": _estimator,
    "Info": lambda: _info(pi.integrated_gradients, scores, _x(2, 3), None, 0),
    "Info of samples": lambda: _info(pi.smooth_grad, scores, _x(2, 3), 0),
    "MoreauInfo": lambda: _info(pi.moreau_grad, scores, _x(2, 3), 0),
    "Masks": lambda: pi.igos(scores, _x(1, 1, 4, 4), None, 0, size=2, iterations=1, n_steps=2),
    "FullGradients": lambda: pi.full_grad(_mlp(), _x(2, 4), 0),
    "IntegratedGradients": lambda: pi.IntegratedGradients(scores),
    "NoiseTunnel": lambda: pi.NoiseTunnel(pi.Saliency(scores)),
    "LayerIntegratedGradients": lambda: pi.LayerIntegratedGradients((m := _mlp()), m[0]),
    "IGRegularizer": lambda: pi.IGRegularizer(scores),
}  # fmt: skip


def _saved(value, weights_only=False):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


WAYS = {
    "pickle": lambda v: pickle.loads(pickle.dumps(v)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": _saved,
}


def same(a: Any, b: Any) -> bool:
    """Equal tensors in the same places, equal otherwise as far as they say so in words."""
    mine, its = list(tensors(a)), list(tensors(b))
    equal = all(torch.equal(x, y) for x, y in zip(mine, its, strict=True))
    if isinstance(a, (nn.Module, rl.SharedInput)) or " at 0x" in repr(a):
        return equal and type(a) is type(b)
    return equal and repr(a) == repr(b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_copied_whole(name, way):
    made = OBJECTS[name]()
    found = WAYS[way](made)
    assert type(found) is type(made)
    assert same(found, made)


def _forward(module, seed=3):
    torch.manual_seed(seed)
    shape = {rl.Conv2d: (2, 2, 5, 5), ka.KroneckerAttention: (2, 5, 8)}.get(type(module), (6, 4))
    x = _x(*shape).requires_grad_()
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_copied_whole(name, way):
    """The copy has the same state, and goes on as the original does."""
    module = MODULES[name]()
    _forward(module)
    found = WAYS[way](module)
    assert found.state_dict().keys() == module.state_dict().keys()
    if way == "copy":  # shares its state: forwards of one count for both
        return
    for a, b in zip(_forward(found), _forward(module), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_state_dicts_are_plain_tensors(name):
    """torch.load's default, which runs no code of the file, reads every state."""
    module = MODULES[name]()
    state = _saved(module.state_dict(), weights_only=True)
    fresh = MODULES[name]()
    fresh.load_state_dict(state)
    for a, b in zip(_forward(fresh), _forward(module), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# ----------------------------------------------------------------------------------------- damaged


def _damaged(state, key, change):
    return {**state, key: change(state[key])}


SILU = {
    "levels": {"short": lambda t: t[:-1], "NaN": lambda t: t * math.nan, "empty": lambda t: t[:0]},
    "borders": {"short": lambda t: t[:-1], "NaN": lambda t: t * math.nan,
                "unsorted": lambda t: t.flip(0)},
    "codes": {"short": lambda t: t[:-1], "beyond the levels": lambda t: t + 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "kind"), [(key, kind) for key, kinds in SILU.items() for kind in kinds]
)
def test_a_damaged_few_bit_state_is_refused(key, kind):
    """Codes that point beyond the levels would be read out of bounds in backward."""
    module = fewbit.SiLU(bits=3)
    state = _damaged(module.state_dict(), key, SILU[key][kind])
    with pytest.raises((RuntimeError, ValueError), match=key):
        module.load_state_dict(state)
    _forward(module)  # and the module is as it was


@pytest.mark.parametrize("make", [MODULES["randomized Linear"], MODULES["KroneckerAttention"]])
def test_states_of_another_shape_are_refused(make):
    module = make()
    key = next(iter(module.state_dict()))
    for change in (lambda t: t[:-1], lambda t: t.double()[None]):
        with pytest.raises(RuntimeError, match=key):
            module.load_state_dict(_damaged(module.state_dict(), key, change))


@pytest.mark.parametrize("key", ["sketch_key", "sketch_count"])
def test_damaged_seeds_are_refused(key):
    module = rl.Linear(4, 3)
    for change in (lambda t: -1 - t, lambda t: t.double() + 0.5, lambda t: t[None].expand(2)):
        with pytest.raises((RuntimeError, ValueError), match=key):
            module.load_state_dict(_damaged(module.state_dict(), key, change))


@pytest.mark.parametrize("name", ["Codebook", "GatedCodebook"])
def test_damaged_codebooks_are_refused(name):
    code = OBJECTS[name]()
    data = code.to_dict()
    changes = {
        "borders": ([math.nan], [3.0, 1.0], "a", None, [[1.0]], list(range(300))),
        "codes": ([9] * len(data["codes"]), [-1], [0.5], [], None),
        "levels": ([1.0], [math.inf] * 4, [], None, "abcd"),
        "bits": (0, 9, 2.0, True, None, "2"),
        "name": (None, 3),
        "params": (["a"], 3, [math.nan], None),
        "no such field": (1,),
    }
    for key, values in changes.items():
        for value in values:
            with pytest.raises((TypeError, ValueError)):
                type(code).from_dict({**data, key: value})
    for key in ("borders", "codes", "levels", "bits"):
        with pytest.raises(ValueError, match=key):
            type(code).from_dict({k: v for k, v in data.items() if k != key})
