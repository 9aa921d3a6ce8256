"""Kernels of the CPU module. Addresses are those of tensors, 0 for none; the result is a status
(csrc/common/error.h). The meaning of each argument: csrc/<family>/kernels.h. Only _native.py calls
these, and it checks what the addresses mean.
"""

isa: str  # "base", "v3" or "v4": the instruction set in use

def error_text(status: int, /) -> str: ...
def fewbit_functions() -> list[str]: ...
def fewbit_fwd(
    dtype: int,
    fn: int,
    a: float,
    b: float,
    x: int,
    y: int,
    packed: int,
    n: int,
    borders: int,
    codes: int,
    count: int,
    levels: int,
    bits: int,
    seed: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> int: ...
def fewbit_bwd(
    dtype: int,
    grad: int,
    packed: int,
    levels: int,
    dx: int,
    n: int,
    bits: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> int: ...
def fewbit_gated_fwd(
    dtype: int,
    fn: int,
    gate: int,
    up: int,
    y: int,
    packed: int,
    n: int,
    borders: int,
    codes: int,
    count: int,
    bits: int,
    scale: int,
    inner: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> int: ...
def fewbit_gated_bwd(
    dtype: int,
    fn: int,
    dy: int,
    kept: int,
    packed: int,
    levels: int,
    values: int,
    scale: int,
    inner: int,
    dgate: int,
    dup: int,
    n: int,
    bits: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> int: ...
