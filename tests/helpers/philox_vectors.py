"""Published known answers and index sets for the generator's tests."""

from __future__ import annotations

import torch
from torch import Tensor

#: (counter, key, output) of Philox4x32-10, Random123's kat_vectors.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

#: Small, above 32 bits in the key, and the largest.
SEEDS = (0, 1, 0xDEADBEEF, 2**32, 2**32 + 7, 0x123456789ABCDEF, 2**63 - 1)


def indices() -> Tensor:
    """Element indices around every word boundary of the counter, and random ones up to 2**62."""
    generator = torch.Generator().manual_seed(5)
    edges = [0, 2**31, 2**32, 2**34, 2**34 + 2**33, 2**40, 2**62 - 8]
    near = [e + d for e in edges for d in range(-5, 6) if e + d >= 0]
    spread = [torch.randint(2**k, (40,), generator=generator) for k in (10, 33, 35, 50, 62)]
    return torch.cat([torch.tensor(near), *spread])
