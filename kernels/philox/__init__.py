"""Counter-based random numbers: Philox4x32-10, the same bits in PyTorch and in Triton.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), as in the Random123 library.
A counter-based generator has no state: a draw is a function of (seed, counter), so it is the same in any
batch, on any rank and after any restart. Here

    key     = (seed mod 2^32, seed div 2^32)
    counter = (block, position mod 2^32, position div 2^32, stream)

where `position` is the image's place in the order of all images. One evaluation gives a block of four
words of 32 bits; element i of a sequence of draws is word i mod 4 of block i div 4.
"""

from kernels.philox.reference import draws, philox

STREAM_MASK = 0
"""Which patches stay visible: one draw per patch."""
STREAM_ROUNDING = 1
"""Randomised rounding of the number of patches kept inside the contour: element 0."""
STREAM_PREDICTION = 2
"""Which masked patches are predicted: one draw per patch."""
STREAM_CROP = 3
STREAM_FLIP = 4

__all__ = [
    "STREAM_CROP",
    "STREAM_FLIP",
    "STREAM_MASK",
    "STREAM_PREDICTION",
    "STREAM_ROUNDING",
    "draws",
    "philox",
]
