"""Entries of path_integral: models of few kinds, right ones and such that nobody can use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from reliability import values as V
from reliability.table import Arguments, entry
from reliability.values import Draw
from sublimate import path_integral as pi
from torch import Tensor, nn


class Net(nn.Module):
    """Three scores of a sample of any shape, smooth, with a weight and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(1, 2, 1)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        if x.is_complex():
            x = x.abs()
        rows = x.reshape(x.shape[0], 1, x.shape[1:].numel()).to(self.inner.weight.dtype)
        hidden = self.inner(rows).tanh()
        parts = (hidden.sum((1, 2)), (hidden * rows).sum((1, 2)), hidden.square().sum((1, 2)))
        return torch.stack(parts, 1)


def scores(x: Tensor, *more: Any) -> Tensor:
    x = x.abs() if x.is_complex() else x
    rows = x.reshape(x.shape[0], x.shape[1:].numel())
    return torch.stack([rows.sin().sum(1), rows.square().sum(1)], 1)


def one_score(x: Tensor, *more: Any) -> Tensor:
    return scores(x).sum(1)


#: Not models: the wrong thing comes back, or nothing to differentiate.
BROKEN: tuple[Callable[..., Any], ...] = (
    lambda x, *more: 3,
    lambda x, *more: x.detach().reshape(x.shape[0], -1).sum(1),
    lambda x, *more: x.sum(),
    lambda x, *more: (x, x),
    lambda x, *more: torch.zeros(7, 2) + x.sum(),
    lambda x, *more: x.reshape(x.shape[0], -1).sum(1) > 0,
    lambda x, *more: scores(x) * float("nan"),
)


def _net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def _model(draw: Draw) -> Callable[..., Any]:
    kind = V.one(draw, "net", "scores", "scores", "one", "broken")
    if kind == "broken":
        return draw(st.sampled_from(BROKEN))
    return _net() if kind == "net" else {"scores": scores, "one": one_score}[kind]


def _inputs(draw: Draw) -> Tensor:
    dtype = V.one(draw, torch.float32, torch.float32, *V.FLOATS, torch.complex64)
    shape = [V.one(draw, 2, 1, 3, 0), *V.dims(draw, 0, 3, largest=9)]
    return V.tensor(draw, shape, dtype, kinds=("normal", "normal", "whole", "zero", "nan", "huge"))


def _common(draw: Draw, inputs: Tensor | None = None) -> Arguments:
    x = _inputs(draw) if inputs is None else inputs
    target = V.one(draw, 0, 0, 1, None, -1, 5, "each", "tensor")
    if target == "each":
        target = [0] * x.shape[0]
    elif target == "tensor":
        target = torch.zeros(x.shape[0], dtype=torch.int64)
    return {
        "forward": _model(draw), "inputs": x, "target": target,
        "additional_forward_args": V.one(draw, None, None, 3, (1, "a")),
        "create_graph": V.one(draw, False, False, True), "backend": V.backend(draw),
    }  # fmt: skip


def _budget(draw: Draw) -> Arguments:
    return {"internal_batch_size": V.one(draw, None, None, 1, 3),
            "memory_budget": V.one(draw, None, None, 2**10, 2**20)}  # fmt: skip


def _baselines(draw: Draw, x: Tensor) -> Any:
    kind = V.one(draw, "none", "number", "row", "rows")
    if kind in ("none", "number"):
        return None if kind == "none" else 0.5
    return torch.zeros((1, *x.shape[1:]) if kind == "row" else x.shape, dtype=x.dtype)


def _steps(draw: Draw) -> Arguments:
    method = V.one(draw, *pi.quadrature.METHODS)
    adaptive = V.one(draw, 0, 0, 0, 1)
    return {"n_steps": V.one(draw, 1, 2, 5), "method": method,
            "tol": 0.1 if adaptive else None, "max_steps": 9 if adaptive else None}  # fmt: skip


def _draws(draw: Draw) -> Arguments:
    return {"n_samples": V.one(draw, 1, 2, 5), "seed": V.one(draw, 0, 7, None)}


refused = functools.partial(entry, early=False)


@refused("path_integral.integrated_gradients", pi.integrated_gradients)
def _ig(draw: Draw) -> Arguments:
    a = _common(draw)
    several = V.one(draw, 0, 0, 0, 1)
    if several:
        a.update(target=V.one(draw, "all", [0, 1]), multi_target=True)
    flags = ("return_convergence_delta", "return_info", "compat_trapezoid")
    return {**a, **_budget(draw), **_steps(draw), "baselines": _baselines(draw, a["inputs"]),
            "multiply_by_inputs": draw(st.booleans()),
            **{flag: draw(st.booleans()) for flag in flags}}  # fmt: skip


@refused("path_integral.cross_domain_integrated_gradients", pi.cross_domain_integrated_gradients)
def _cross(draw: Draw) -> Arguments:
    a = _common(draw)
    transform = V.one(draw, "fft", "fft", "dct", "haar")
    return {**a, **_steps(draw), "transform": transform, "dim": V.one(draw, -1, -1, 1),
            "baselines": _baselines(draw, a["inputs"])}  # fmt: skip


@refused("path_integral.layer_integrated_gradients", pi.layer_integrated_gradients)
def _layer(draw: Draw) -> Arguments:
    a = _common(draw)
    net = _net()
    layer = V.one(draw, net.inner, net.inner, net, nn.Identity(), [net.inner])
    return {**a, **_steps(draw), "forward": net, "layer": layer,
            "baselines": _baselines(draw, a["inputs"]),
            "attribute_to_layer_input": draw(st.booleans())}  # fmt: skip


def _references(draw: Draw, x: Tensor) -> Tensor:
    return V.tensor(draw, [V.one(draw, 3, 1, 2), *x.shape[1:]], x.dtype, kinds=("normal",))


@refused("path_integral.expected_gradients", pi.expected_gradients)
def _expected(draw: Draw) -> Arguments:
    a = _common(draw)
    ids = V.one(draw, None, None, torch.arange(a["inputs"].shape[0]))
    return {**a, **_budget(draw), **_draws(draw), "references": _references(draw, a["inputs"]),
            "stratified": draw(st.booleans()), "sample_ids": ids,
            "return_info": draw(st.booleans()), "return_convergence_delta": draw(st.booleans()),
            "method": V.one(draw, None, None, "gausslegendre")}  # fmt: skip


@refused("path_integral.gradient_shap", pi.gradient_shap)
def _shap(draw: Draw) -> Arguments:
    a = _common(draw)
    return {**a, **_budget(draw), **_draws(draw), "baselines": _references(draw, a["inputs"]),
            "stdevs": V.one(draw, 0.0, 0.1, (0.1,)), "stratified": draw(st.booleans())}  # fmt: skip


@refused("path_integral.smooth_grad", pi.smooth_grad)
def _smooth(draw: Draw) -> Arguments:
    a = _common(draw)
    stdev = V.one(draw, 0.1, (0.1,), torch.ones(a["inputs"].shape[0]))
    return {**a, **_budget(draw), **_draws(draw), "stdev": stdev,
            "kind": V.one(draw, "mean", "squared", "variance"),
            "return_info": draw(st.booleans())}  # fmt: skip


@refused("path_integral.integrated_hessian", pi.integrated_hessian)
def _hessian(draw: Draw) -> Arguments:
    x = V.tensor(draw, [V.one(draw, 2, 1, 0), V.one(draw, 3, 1, 2)], V.floating(draw))
    return {**_common(draw, x), **_budget(draw), "n_steps": V.one(draw, 1, 2, 5),
            "baselines": _baselines(draw, x)}  # fmt: skip


@refused("path_integral.moreau_grad", pi.moreau_grad)
def _moreau(draw: Draw) -> Arguments:
    a = _common(draw)
    size = a["inputs"].shape[1:].numel()
    groups = V.one(draw, None, None, torch.arange(size) % 2)
    return {**a, "lam": V.one(draw, 1.0, 0.1), "sparsity": V.one(draw, 0.0, 0.1), "groups": groups,
            "max_iter": V.one(draw, 1, 5), "return_info": draw(st.booleans())}  # fmt: skip


def _images(draw: Draw) -> Tensor:
    sizes = [V.one(draw, 2, 1, 0), V.one(draw, 1, 3), V.one(draw, 5, 1, 4), V.one(draw, 4, 1, 7)]
    return V.tensor(draw, sizes, V.floating(draw), kinds=("normal", "normal", "zero", "nan"))


@refused("path_integral.igos", pi.igos)
def _masks(draw: Draw) -> Arguments:
    a = {**_common(draw, _images(draw)), **_budget(draw)}
    return {
        **a,
        "size": V.one(draw, 2, 1, 3),
        "iterations": V.one(draw, 1, 2),
        "n_steps": V.one(draw, 1, 2),
        "stdev": V.one(draw, 0.0, 0.1),
        "seed": V.one(draw, 0, None),
        "baselines": V.one(draw, None, a["inputs"] * 0),
    }


@entry("path_integral.blurred", pi.blurred, compared=False)
def _blur(draw: Draw) -> Arguments:
    return {"image": _images(draw), "sigma": V.one(draw, 0.5, 1, 10.0)}


@refused("path_integral.full_grad", pi.full_grad)
def _full(draw: Draw) -> Arguments:
    return {**_common(draw), "forward": _net()}


def _map(size: Any = None, **arguments: Any) -> Tensor:
    return pi.full_grad(**arguments).map(size)


@refused("path_integral.FullGradients", _map, names=("size",), compared=False)
def _mapped(draw: Draw) -> Arguments:
    x = V.tensor(draw, [V.one(draw, 2, 1), 1, 4, V.one(draw, 4, 1, 7)], kinds=("normal",))
    return {"forward": _net(), "inputs": x, "target": 0, "size": V.one(draw, (4, 4), (1, 7))}


@refused("path_integral.norm_grad", pi.norm_grad)
def _norm(draw: Draw) -> Arguments:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    net = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), Net())
    x = V.tensor(draw, [V.one(draw, 2, 1, 0), 1, V.one(draw, 5, 1), 4], kinds=("normal", "nan"))
    return {**_common(draw, x), "forward": net, "layer": V.one(draw, conv, net[1], [conv], conv),
            "kind": V.one(draw, "conv1x1", "conv3x3", "bias", "scaling"),
            "size": V.one(draw, None, (5, 5)), "additional_forward_args": None}  # fmt: skip


@entry("path_integral.norm_grad_maps", pi.norm_grad_maps, compared=False)
def _norms(draw: Draw) -> Arguments:
    x = _images(draw)
    return {"activation": x, "gradient": x.detach() * 2,
            "kind": V.one(draw, "conv1x1", "conv3x3", "bias", "scaling")}  # fmt: skip


def _prior(attributions: Any = None, kind: Any = "smoothness", apart: bool = False) -> Any:
    if apart:
        return pi.attribution_prior(kind=kind)(attributions)
    return pi.attribution_prior(attributions, kind=kind)


@refused("path_integral.attribution_prior", _prior, names=("attributions", "kind"), compared=False)
def _priors(draw: Draw) -> Arguments:
    shape = [V.one(draw, 2, 1, 0), *V.dims(draw, 0, 3)]
    kind = V.one(draw, "smoothness", "sparsity", "gini", "total_variation")
    return {"attributions": V.tensor(draw, shape, V.floating(draw)), "kind": kind,
            "apart": draw(st.booleans())}  # fmt: skip


def _regularised(x: Any = None, target: Any = None, perturbed: Any = None, **options: Any) -> Any:
    return pi.IGRegularizer(**options)(x, target, perturbed)


@refused("path_integral.IGRegularizer", _regularised, compared=False,
         names=("x", "target", "perturbed", "forward", "n_steps", "method", "baselines", "stdev",
                "backend"))  # fmt: skip
def _regulariser(draw: Draw) -> Arguments:
    a = _common(draw)
    return {
        "x": a["inputs"],
        "target": a["target"],
        "forward": a["forward"],
        "n_steps": 2,
        "perturbed": V.maybe(draw, lambda: a["inputs"] * 0.5),
        "backend": a["backend"],
    }


# ----------------------------------------------------------------------------------------- Captum's

PLAIN = ("inputs", "target", "additional_forward_args")


def _attribute(cls: Any, forward: Any = None, made: Any = None, **arguments: Any) -> Any:
    return cls(forward, **(made or {})).attribute(**arguments)


def _captum(
    name: str, build: Callable[[Draw, Arguments], Arguments], *more: str
) -> Callable[[Draw], Arguments]:
    def draw_all(draw: Draw) -> Arguments:
        a = _common(draw)
        given = {n: a[n] for n in ("forward", *PLAIN)}
        made = {"backend": a["backend"], "create_graph": a["create_graph"]}
        return {**given, "made": made, **build(draw, a)}

    cls = getattr(pi, name)
    names = ("forward", *(n for n in inspect.signature(cls.attribute).parameters if n != "self"))
    call = functools.partial(_attribute, cls)
    refused(f"path_integral.{name}", call, compared=False, names=(*names, *more))(draw_all)
    return draw_all


_captum("IntegratedGradients", lambda draw, a: {"n_steps": 2, **_budget(draw)})
_captum("Saliency", lambda draw, a: {"abs": draw(st.booleans())})
_captum("SmoothGrad", lambda draw, a: {"n_samples": 2, "kind": V.one(draw, "mean", "squared")})
_captum("ExpectedGradients", lambda draw, a: {
    "n_samples": 2, "baselines": _references(draw, a["inputs"])})  # fmt: skip
_captum("GradientShap", lambda draw, a: {
    "n_samples": 2, "baselines": _references(draw, a["inputs"]), "stdevs": 0.1})  # fmt: skip


def _through(forward: Any = None, layer: Any = None, method: Any = None, **a: Any) -> Any:
    if layer is not None:
        return pi.LayerIntegratedGradients(forward, layer).attribute(n_steps=2, **a)
    return pi.NoiseTunnel(pi.Saliency(forward) if method is None else method).attribute(**a)


@refused("path_integral.LayerIntegratedGradients", _through, compared=False,
         names=("forward", "layer", "baselines", *PLAIN))  # fmt: skip
def _captum_layer(draw: Draw) -> Arguments:
    a, net = _common(draw), _net()
    return {"forward": net, "layer": net.inner, **{n: a[n] for n in PLAIN},
            "baselines": _baselines(draw, a["inputs"])}  # fmt: skip


@refused("path_integral.NoiseTunnel", _through, compared=False,
         names=("forward", "method", "nt_type", "nt_samples", "nt_samples_batch_size", "stdevs",
                "draw_baseline_from_distrib", *PLAIN))  # fmt: skip
def _tunnel(draw: Draw) -> Arguments:
    a = _common(draw)
    kind = V.one(draw, "smoothgrad", "smoothgrad_sq", "vargrad")
    return {"forward": a["forward"], **{n: a[n] for n in PLAIN}, "nt_type": kind, "nt_samples": 2,
            "stdevs": V.one(draw, 0.1, 1.0)}  # fmt: skip


# ---------------------------------------------------------------------------------------- pictures


def _drawn(function: Callable[..., Any], **arguments: Any) -> None:
    import matplotlib

    matplotlib.use("Agg", force=True)
    import matplotlib.pyplot as plt

    try:
        function(**arguments)
    finally:
        plt.close("all")


@entry(
    "path_integral.plot",
    functools.partial(_drawn, pi.plot),
    compared=False,
    names=("attributions", "image", "sign", "percentile", "alpha", "title", "colorbar", "ax"),
)
def _picture(draw: Draw) -> Arguments:
    shape = V.dims(draw, 2, 3, smallest=1)
    image = V.maybe(draw, lambda: V.tensor(draw, shape, kinds=("normal", "nan")))
    return {"attributions": V.tensor(draw, shape), "image": image, "colorbar": draw(st.booleans()),
            "sign": V.one(draw, "all", "positive", "negative", "absolute")}  # fmt: skip


@entry("path_integral.plot_series", functools.partial(_drawn, pi.plot_series), compared=False,
       names=("attributions", "series", "x", "labels", "title", "ax"))  # fmt: skip
def _series(draw: Draw) -> Arguments:
    shape = V.dims(draw, 1, 2)
    return {"attributions": V.tensor(draw, shape),
            "series": V.maybe(draw, lambda: V.tensor(draw, shape))}  # fmt: skip
