"""Triton kernels of Kronecker attention; fwd.py and bwd.py are the interface."""
