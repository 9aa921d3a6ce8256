"""Entries of fewbit, randomized_linear, kronecker_attention, memory and the package itself."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import sublimate
import torch
from hypothesis import strategies as st
from reliability import values as V
from reliability.table import Arguments, entry
from reliability.values import Draw
from sublimate import fewbit, memory
from sublimate import kronecker_attention as ka
from sublimate import randomized_linear as rl
from torch import Tensor, nn

# ------------------------------------------------------------------------------------- the package


@entry("sublimate.backends", sublimate.backends)
@entry("sublimate.get_backend", sublimate.get_backend)
def _nothing(draw: Draw) -> Arguments:
    return {}


def _set_and_reset(**arguments: Any) -> None:
    before = sublimate.get_backend()
    try:
        sublimate.set_backend(**arguments)
    finally:
        sublimate.set_backend(before)


def _enter_and_leave(**arguments: Any) -> None:
    with sublimate.use_backend(**arguments):
        pass


@entry("sublimate.set_backend", _set_and_reset, names=("name",))
@entry("sublimate.use_backend", _enter_and_leave, names=("name",))
def _name(draw: Draw) -> Arguments:
    return {"name": V.one(draw, "auto", "reference", "cpu", "triton", "cuda", "gpu")}


# ------------------------------------------------------------------------------------------ fewbit


@functools.cache
def codebooks() -> dict[str, fewbit.Codebook | fewbit.GatedCodebook]:
    return {
        "gelu 3": fewbit.fit_codebook("gelu", 3),
        "gelu 2": fewbit.fit_codebook("gelu", 2),
        "silu stochastic": fewbit.fit_codebook("silu", 3, mode="stochastic"),
        "relu": fewbit.fit_codebook("relu", 1),
        "lost": fewbit.Codebook.from_dict(fewbit.fit_codebook(torch.sin, 2).to_dict()),
        "gated": fewbit.fit_gated_codebook("silu", 3),
    }


def _codebook(draw: Draw) -> Any:
    return codebooks()[V.one(draw, *sorted(codebooks()))]


#: Few values, as each new one of a smooth function fits a codebook.
PARAMETERS = (0.5, 1.0, 2, -0.25, 0.0, 20.0)


def _activation(draw: Draw, function: Any) -> Arguments:
    shape = V.dims(draw, 0, 4, largest=65)
    arguments: Arguments = {}
    for name, p in inspect.signature(function).parameters.items():
        if name in ("x", "gate"):
            arguments[name] = V.tensor(draw, shape, V.floating(draw))
        elif name == "up":
            arguments[name] = V.tensor(draw, shape, arguments["gate"].dtype)
        elif name == "bits":
            arguments[name] = p.default if draw(st.booleans()) else V.one(draw, 1, 2, 3, 4)
        elif name == "codebook":
            needed = p.default is inspect.Parameter.empty or V.one(draw, 0, 0, 0, 1)
            arguments[name] = _codebook(draw) if needed else None
        elif name == "stochastic":
            arguments[name] = V.one(draw, False, False, True)
        elif name == "seed":
            arguments[name] = V.seed(draw) if arguments["stochastic"] else None
        elif name == "backend":
            arguments[name] = V.backend(draw)
        elif name == "approximate":
            arguments[name] = V.one(draw, "none", "tanh")
        elif name == "keep":
            arguments[name] = V.one(draw, "up", "gate")
        elif name == "fn":
            arguments[name] = V.maybe(draw, lambda: V.one(draw, torch.sin, torch.tanh))
        else:
            arguments[name] = V.one(draw, *PARAMETERS)
    return arguments


def _module(cls: type[nn.Module], **arguments: Any) -> Any:
    inputs = [arguments.pop(name) for name in ("x", "gate", "up") if name in arguments]
    return cls(**arguments)(*inputs)


def _module_arguments(draw: Draw, cls: type[nn.Module]) -> Arguments:
    shape, dtype = V.dims(draw, 0, 4, largest=65), V.floating(draw)
    arguments: Arguments = {}
    for name, p in inspect.signature(cls).parameters.items():
        if name == "inplace":
            arguments[name] = False
        elif name == "approximate":
            arguments[name] = V.one(draw, "none", "tanh")
        elif p.kind is not inspect.Parameter.VAR_KEYWORD:
            arguments[name] = V.one(draw, *PARAMETERS)
    if V.one(draw, 0, 1):
        arguments["bits"] = V.one(draw, 1, 2, 3, 4)
    if V.one(draw, 0, 0, 1):
        arguments["backend"] = V.backend(draw)
    for name in ("gate", "up") if cls.__name__.endswith("GLU") else ("x",):
        arguments[name] = V.tensor(draw, shape, dtype)
    return arguments


for _n in fewbit.__all__:
    _f = getattr(fewbit, _n)
    if isinstance(_f, type) and issubclass(_f, nn.Module):
        _names = tuple(n for n in inspect.signature(_f).parameters if n != "options")
        _more = ("gate", "up") if _n.endswith("GLU") else ("x", "stochastic")
        entry(
            f"fewbit.{_n}", functools.partial(_module, _f), compared=False,
            names=(*_names, *_more, "bits", "backend", "codebook"),
        )(functools.partial(_module_arguments, cls=_f))  # fmt: skip
    elif callable(_f) and "backend" in inspect.signature(_f).parameters:
        entry(f"fewbit.{_n}", _f)(functools.partial(_activation, function=_f))


@entry("fewbit.fit_codebook", fewbit.fit_codebook, compared=False)
def _fit(draw: Draw) -> Arguments:
    arguments: Arguments = {
        "fn": V.one(draw, "silu", "relu", "elu", "half_square", torch.sin),
        "bits": V.one(draw, 1, 2),
        "mode": V.one(draw, "value", "interval", "stochastic"),
    }
    density = V.one(draw, "normal", "uniform", "samples", None)
    if density == "uniform":
        arguments.update(density="uniform", low=-2.0, high=1.0)
    elif density == "samples":
        arguments["samples"] = V.tensor(draw, V.dims(draw, 1, 2), V.floating(draw))
    elif density == "normal":
        arguments.update(mean=V.one(draw, 0.0, -1.0), std=V.one(draw, 1.0, 0.1))
    return arguments


@entry("fewbit.fit_gated_codebook", fewbit.fit_gated_codebook, compared=False)
def _fit_gated(draw: Draw) -> Arguments:
    arguments: Arguments = {"name": V.one(draw, "silu", "gelu", "gelu_tanh", "relu")}
    arguments["bits"] = V.one(draw, 1, 2)
    if draw(st.booleans()):
        arguments["samples"] = V.tensor(draw, V.dims(draw, 1, 2), V.floating(draw))
    return arguments


def _tables(draw: Draw) -> Arguments:
    count = V.one(draw, 1, 2, 3, 4)
    borders = torch.arange(count - 1, dtype=torch.float32) - 0.5
    return {
        "borders": borders if draw(st.booleans()) else V.tensor(draw, [count - 1], grad=False),
        "codes": torch.arange(count) % V.one(draw, 1, 2, 4),
        "levels": V.tensor(draw, [4], kinds=("normal", "whole", "nan", "inf"), grad=False),
        "bits": 2,
    }


@entry("fewbit.Codebook", fewbit.Codebook, compared=False)
def _made(draw: Draw) -> Arguments:
    return _tables(draw)


@entry("fewbit.GatedCodebook", fewbit.GatedCodebook, compared=False)
def _made_gated(draw: Draw) -> Arguments:
    return {**_tables(draw), "values": V.tensor(draw, [4], grad=False)}


def _from_dict(**data: Any) -> fewbit.Codebook:
    return fewbit.Codebook.from_dict(data)


@entry("fewbit.Codebook.from_dict", _from_dict, compared=False,
       names=tuple(fewbit.fit_codebook("silu", 2).to_dict()))  # fmt: skip
def _saved(draw: Draw) -> Arguments:
    return dict(codebooks()[V.one(draw, "gelu 2", "relu", "lost")].to_dict())


@entry("fewbit.Codebook.decode", lambda self, x: self.decode(x), compared=False, names=("x",))
def _decoded(draw: Draw) -> Arguments:
    return {"self": _codebook(draw), "x": V.tensor(draw, V.dims(draw, 0, 3), V.floating(draw))}


def _model(draw: Draw) -> nn.Module:
    kind = V.one(draw, "mlp", "conv", "bare", "nested")
    if kind == "bare":
        return V.one(draw, nn.GELU, nn.Identity, nn.ReLU)()
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.LazyLinear(2))
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2), nn.Threshold(0.1, 0.0))
    return nn.Sequential(model, nn.ModuleList([nn.Tanh()])) if kind == "nested" else model


def _rows(draw: Draw) -> list[Tensor]:
    shape = [V.one(draw, 2, 1, 5, 0), V.one(draw, 3, 3, 3, 4)]
    return [V.tensor(draw, shape, kinds=("normal", "whole"), grad=False)]


@entry("fewbit.convert", fewbit.convert, compared=False)
def _converted(draw: Draw) -> Arguments:
    # Batches of a model that takes them: what a user's model raises on others is its own.
    return {"model": nn.Sequential(nn.Linear(3, 4), nn.GELU()), "bits": V.one(draw, 1, 2, 3, 4),
            "calibrate": V.maybe(draw, lambda: [torch.randn(5, 3)])}  # fmt: skip


@entry("fewbit.restore", fewbit.restore, compared=False)
@entry("randomized_linear.restore", rl.restore, compared=False)
def _restored(draw: Draw) -> Arguments:
    return {"model": _model(draw)}


# ------------------------------------------------------------------------------- randomized_linear

#: Handed to torch as they are, whose errors are its own.
TORCHS = ("device", "dtype")


def _parameters(function: Any) -> list[str]:
    return [n for n in inspect.signature(function).parameters if n not in TORCHS]


SKETCHES = ("srht", "dct", "gaussian", "rademacher", "countsketch", "rows", "crs", "wta")


def _linear(draw: Draw) -> Arguments:
    batch, dtype = V.dims(draw, 0, 2, largest=17), V.floating(draw)
    i, o = V.one(draw, 3, 1, 8, 0), V.one(draw, 2, 1, 5, 0)
    rows = 1
    for size in batch:
        rows *= size
    sketch = V.one(draw, *SKETCHES)
    sampled = sketch in ("crs", "wta") and rows and V.one(draw, 0, 1)
    return {
        "x": V.tensor(draw, [*batch, i], dtype),
        "weight": V.tensor(draw, [o, i], dtype),
        "bias": V.maybe(draw, lambda: V.tensor(draw, [o], dtype)),
        "ratio": V.one(draw, 0.2, 0.5, 1, 1e-9),
        "sketch": sketch,
        "seed": V.seed(draw),
        "probabilities": torch.full((rows,), 1 / rows) if sampled else None,
        "backend": V.backend(draw),
    }


entry("randomized_linear.linear", rl.linear)(_linear)


def _shared(weight: Any = None, bias: Any = None, cls: Any = rl.shared_input, **given: Any) -> Any:
    return cls(**given).linear(weight, bias)


@entry("randomized_linear.shared_input", _shared, names=(*inspect.signature(rl.linear).parameters,))
@entry("randomized_linear.SharedInput", functools.partial(_shared, cls=rl.SharedInput),
       names=(*inspect.signature(rl.linear).parameters,))  # fmt: skip
def _handle(draw: Draw) -> Arguments:
    return _linear(draw)


@entry("randomized_linear.project", rl.project)
def _projected(draw: Draw) -> Arguments:
    shape = V.dims(draw, 2, 2, largest=65)
    return {
        "x": V.tensor(draw, shape, V.floating(draw)),
        "sketch": V.one(draw, *SKETCHES),
        "k": V.one(draw, 0, 1, 3, 16, 70),
        "seed": V.seed(draw),
        "backend": V.backend(draw),
    }


@entry("randomized_linear.hadamard_transform", rl.hadamard_transform)
def _transformed(draw: Draw) -> Arguments:
    return {"x": V.tensor(draw, V.dims(draw, 1, 3, largest=65), V.floating(draw)),
            "scale": V.one(draw, 1.0, 0.125, 2, -1.0), "backend": V.backend(draw)}  # fmt: skip


@entry("randomized_linear.variance", rl.variance, compared=False)
def _variance(draw: Draw) -> Arguments:
    batch, dtype = V.dims(draw, 0, 2), V.floating(draw)
    return {"x": V.tensor(draw, [*batch, 3], dtype), "dy": V.tensor(draw, [*batch, 2], dtype),
            "sketch": V.one(draw, *SKETCHES), "k": V.one(draw, 1, 2, 7)}  # fmt: skip


def _layer(cls: Any, input: Any = None, **options: Any) -> Any:
    return cls(**options)(input)


def _layer_options(draw: Draw) -> Arguments:
    return {"ratio": V.one(draw, 0.2, 1.0, 0.5), "sketch": V.one(draw, *SKETCHES), "bias": True,
            "seed": V.one(draw, 0, 3), "layer": V.one(draw, None, 0, 5),
            "backend": V.backend(draw)}  # fmt: skip


@entry("randomized_linear.Linear", functools.partial(_layer, rl.Linear), compared=False,
       names=("input", *_parameters(rl.Linear)))  # fmt: skip
def _linear_layer(draw: Draw) -> Arguments:
    return {"in_features": 3, "out_features": V.one(draw, 2, 1, 0), **_layer_options(draw),
            "input": V.tensor(draw, [*V.dims(draw, 0, 2), 3])}  # fmt: skip


@entry("randomized_linear.Conv2d", functools.partial(_layer, rl.Conv2d), compared=False,
       names=("input", *_parameters(rl.Conv2d)))  # fmt: skip
def _conv_layer(draw: Draw) -> Arguments:
    # Kernels of one pixel; others are refused.
    return {"in_channels": 2, "out_channels": 4, "kernel_size": V.one(draw, 1, 1, (1, 1), 3),
            "stride": V.one(draw, 1, 2), "padding": V.one(draw, 0, 0, 1),
            "groups": V.one(draw, 1, 1, 2), **_layer_options(draw),
            "input": V.tensor(draw, [V.one(draw, 1, 2, 0), 2, 5, V.one(draw, 5, 3)])}  # fmt: skip


@entry("randomized_linear.convert", rl.convert, compared=False)
def _sketched(draw: Draw) -> Arguments:
    return {"model": _model(draw), "ratio": V.one(draw, 0.2, {"0": 0.5}, {"9": 0.5}),
            "sketch": V.one(draw, *SKETCHES), "include": V.one(draw, None, "0", ["0", "2"], "*"),
            "exclude": V.one(draw, None, "2", []), "seed": V.one(draw, 0, 7)}  # fmt: skip


@entry("randomized_linear.step", rl.step, compared=False)
def _step(draw: Draw) -> Arguments:
    return {"step": V.one(draw, 0, 5, 2**60), "micro_batch": V.one(draw, 0, 2)}


def _noisy(draw: Draw) -> Arguments:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return {
        "model": model,
        "loader": [torch.randn(4, 3) for _ in range(V.one(draw, 2, 1, 0))],
        "loss": lambda m, batch: m(batch).square().mean(),
        "max_batches": V.one(draw, 1, 4),
    }


@entry("randomized_linear.noise_report", rl.noise_report, compared=False, early=False)
def _reported(draw: Draw) -> Arguments:
    return {**_noisy(draw), "sketch": V.one(draw, "srht", "crs"), "ratio": V.one(draw, 0.5, 0.1)}


@entry("randomized_linear.choose_ratio", rl.choose_ratio, compared=False, early=False)
def _chosen(draw: Draw) -> Arguments:
    return {**_noisy(draw), "noise_share": V.one(draw, 0.1, 0.5),
            "ratios": V.one(draw, (0.1, 0.5), [1.0], ())}  # fmt: skip


# ----------------------------------------------------------------------------- kronecker_attention


def _heads(draw: Draw) -> tuple[list[int], torch.dtype]:
    """(batch, query heads, key heads, N, M1, M2, D, Dv) and a dtype."""
    shared = V.one(draw, 1, 2)
    sizes = [V.one(draw, 1, 2, 0), shared * V.one(draw, 1, 2), shared]
    sizes += [V.one(draw, 5, 1, 0, 17) for _ in range(3)]
    return [*sizes, V.one(draw, 4, 1, 3), V.one(draw, 4, 2, 5)], V.floating(draw)


def _attention(draw: Draw) -> Arguments:
    (b, hq, h, n, m1, m2, d, dv), dtype = _heads(draw)
    kinds = ("normal", "whole", "zero", "nan")
    pick = functools.partial(V.tensor, draw, dtype=dtype, kinds=kinds)
    return {
        "q": pick([b, hq, n, d]), "k1": pick([b, h, m1, d]), "k2": pick([b, h, m2, d]),
        "v1": pick([b, h, m1, dv]), "v2": pick([b, h, m2, dv]),
        "scale": V.one(draw, None, 0.1, 1), "causal": draw(st.booleans()),
        "window": V.one(draw, None, None, (2, 3), (0, 4)),
        "mask1": V.maybe(draw, lambda: V.tensor(draw, [b, m1], torch.bool)),
        "mask2": V.maybe(draw, lambda: V.tensor(draw, [b, m2], torch.bool)),
        "backend": V.one(draw, None, "cpu", "reference", "auto", "triton", "cuda"),
    }  # fmt: skip


@entry("kronecker_attention.kronecker_attention", ka.kronecker_attention, early=False)
def _any_method(draw: Draw) -> Arguments:
    method = V.one(draw, "auto", "exact", "polynomial", "hybrid")
    degree = None if method == "exact" else V.one(draw, None, 1, 2, 3)
    return {
        **_attention(draw),
        "method": method,
        "degree": degree,
        "coefficients": V.one(draw, "taylor", "hermite"),
        "tol": V.one(draw, None, None, 0.1),
        "return_lse": draw(st.booleans()),
        "return_info": V.one(draw, False, False, True),
    }


@entry("kronecker_attention.choose", ka.choose, early=False)
def _planned(draw: Draw) -> Arguments:
    return {**_attention(draw), "tol": V.one(draw, 0.1, 0.5, 1e-6), "rows": V.one(draw, 1, 4),
            "degree": V.one(draw, None, 2)}  # fmt: skip


@entry("kronecker_attention.strassen_attention", ka.strassen_attention)
def _strassen(draw: Draw) -> Arguments:
    return {**_attention(draw), "return_lse": draw(st.booleans())}


def _lists(draw: Draw) -> Arguments:
    a = _attention(draw)
    return {"q": a["q"], "keys": [a["k1"], a["k2"]], "values": [a["v1"], a["v2"]],
            "scale": a["scale"], "causal": a["causal"], "window": a["window"],
            "masks": [a["mask1"], a["mask2"]], "degree": V.one(draw, 1, 2, 3),
            "coefficients": V.one(draw, "taylor", "hermite")}  # fmt: skip


@entry("kronecker_attention.polynomial_attention", ka.polynomial_attention, early=False)
def _polynomial(draw: Draw) -> Arguments:
    return {**_lists(draw), "return_lse": draw(st.booleans()), "backend": V.backend(draw)}


@entry("kronecker_attention.certificate", ka.certificate, compared=False)
def _certified(draw: Draw) -> Arguments:
    arguments = _lists(draw)
    del arguments["values"]
    return arguments


def _output(values: Any = None, **arguments: Any) -> Any:
    return ka.certificate(**arguments).output(values)


@entry("kronecker_attention.Certificate", _output, compared=False, names=("values",))
def _bound(draw: Draw) -> Arguments:
    return _lists(draw)


@entry("kronecker_attention.estimated_error", ka.estimated_error, compared=False)
def _estimated(draw: Draw) -> Arguments:
    return {**_lists(draw), "rows": V.one(draw, 1, 4)}


def _attend(**arguments: Any) -> Any:
    inputs = {n: arguments.pop(n) for n in CALLED if n in arguments}
    return ka.KroneckerAttention(**arguments)(**inputs)


CALLED = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "is_causal")


@entry("kronecker_attention.KroneckerAttention", _attend, compared=False, early=False,
       names=(*_parameters(ka.KroneckerAttention), *CALLED))  # fmt: skip
def _attending(draw: Draw) -> Arguments:
    b, n = V.one(draw, 2, 1, 0), V.one(draw, 5, 1, 0)
    shape = [b, n, 8]
    arguments: Arguments = {
        "embed_dim": 8, "num_heads": V.one(draw, 2, 4), "kv_heads": V.one(draw, None, 1, 2),
        "order": V.one(draw, 3, 3, 4), "causal": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "method": V.one(draw, "auto", "exact", "polynomial"), "degree": V.one(draw, None, 2),
        "query": V.tensor(draw, shape, kinds=("normal", "whole")),
    }  # fmt: skip
    if draw(st.booleans()):
        arguments["key"] = V.tensor(draw, shape, kinds=("normal",))
    if draw(st.booleans()):
        arguments["key_padding_mask"] = V.tensor(draw, [b, n], torch.bool)
    return arguments


# ------------------------------------------------------------------------------------------ memory


def _planning(model: Any = None, x: Any = None, **options: Any) -> Any:
    return memory.plan(model, x, **options)


@entry("memory.plan", _planning, compared=False, early=False,
       names=("model", "x", "bits", "ratio", "sketch", "measure"))  # fmt: skip
def _plan(draw: Draw) -> Arguments:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    return {"model": model, "x": torch.randn(V.one(draw, 2, 1), 3), "bits": V.one(draw, 1, 3),
            "ratio": V.one(draw, 0.2, 1.0), "sketch": V.one(draw, "srht", "crs"),
            "measure": draw(st.booleans())}  # fmt: skip


@entry("memory.saved_bytes", lambda fn_or_model, x: memory.saved_bytes(fn_or_model, x),
       compared=False, early=False)  # fmt: skip
def _counted(draw: Draw) -> Arguments:
    return {"fn_or_model": V.one(draw, torch.sin, nn.Linear(3, 4)), "x": torch.randn(2, 3)}
