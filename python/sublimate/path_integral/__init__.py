"""Path-integral attributions: batched, differentiable, with a stated error; see README.md here."""

from . import quadrature, reference
from .arguments import ArgumentError
from .captum import (
    ExpectedGradients,
    GradientShap,
    IntegratedGradients,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
    SmoothGrad,
)
from .domains import cross_domain_integrated_gradients
from .expected import expected_gradients
from .functional import integrated_gradients
from .hessian import integrated_hessian
from .hooks import FullGradients, full_grad, norm_grad, norm_grad_maps
from .igos import Masks, blurred, igos
from .layers import layer_integrated_gradients
from .moreau import MoreauInfo, moreau_grad
from .path import Info
from .plot import plot, plot_series
from .priors import IGRegularizer, attribution_prior
from .shap import gradient_shap
from .smooth import smooth_grad

__all__ = [
    "ArgumentError",
    "ExpectedGradients",
    "FullGradients",
    "GradientShap",
    "IGRegularizer",
    "Info",
    "IntegratedGradients",
    "LayerIntegratedGradients",
    "Masks",
    "MoreauInfo",
    "NoiseTunnel",
    "Saliency",
    "SmoothGrad",
    "attribution_prior",
    "blurred",
    "cross_domain_integrated_gradients",
    "expected_gradients",
    "full_grad",
    "gradient_shap",
    "igos",
    "integrated_gradients",
    "integrated_hessian",
    "layer_integrated_gradients",
    "moreau_grad",
    "norm_grad",
    "norm_grad_maps",
    "plot",
    "plot_series",
    "quadrature",
    "reference",
    "smooth_grad",
]
