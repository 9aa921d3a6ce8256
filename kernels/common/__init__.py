"""Triton helpers that more than one family needs."""
