"""Attention over pairs of keys, exact and near-linear; see README.md in this folder."""

from . import reference
from .bounds import Certificate, certificate, estimated_error
from .functional import (
    choose,
    kronecker_attention,
    polynomial_attention,
    strassen_attention,
)
from .modules import KroneckerAttention
from .plan import Plan

__all__ = [
    "Certificate",
    "KroneckerAttention",
    "Plan",
    "certificate",
    "choose",
    "estimated_error",
    "kronecker_attention",
    "polynomial_attention",
    "reference",
    "strassen_attention",
]
