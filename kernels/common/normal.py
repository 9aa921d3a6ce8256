"""Standard normal numbers from random words (``sublimate._normal``), bit-identical to its twins."""

from __future__ import annotations

import triton
import triton.language as tl

#: Segments of the table: 24 octaves of 32.
SEGMENTS = tl.constexpr(768)


@triton.jit
def normal(word, table):
    """float32 normal of each uint32 word.

    table: pointer to SEGMENTS values at the start of each segment, then as many slopes (float32).
    A slope times an offset is exact, so the one sum rounds alike with and without contraction.
    """
    # Odd, 24 bits, so exact in fp32; exponent and upper 5 bits of its mantissa name the segment.
    odd = ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32)
    bits = odd.to(tl.uint32, bitcast=True)
    segment = ((bits >> 18) - (127 << 5)).to(tl.int32)
    offset = ((bits >> 6) & 4095).to(tl.int32).to(tl.float32)
    size = tl.load(table + segment) + tl.load(table + SEGMENTS + segment) * offset
    return (size.to(tl.uint32, bitcast=True) ^ (word << 31)).to(tl.float32, bitcast=True)
