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
from .expected import expected_gradients
from .functional import integrated_gradients
from .layers import layer_integrated_gradients
from .path import Info
from .shap import gradient_shap
from .smooth import smooth_grad

__all__ = [
    "ArgumentError",
    "ExpectedGradients",
    "GradientShap",
    "Info",
    "IntegratedGradients",
    "LayerIntegratedGradients",
    "NoiseTunnel",
    "Saliency",
    "SmoothGrad",
    "expected_gradients",
    "gradient_shap",
    "integrated_gradients",
    "layer_integrated_gradients",
    "quadrature",
    "reference",
    "smooth_grad",
]
