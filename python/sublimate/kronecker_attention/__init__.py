"""Attention over pairs of keys, exact and near-linear; see README.md in this folder."""

from . import reference

__all__ = ["reference"]
