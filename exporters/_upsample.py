"""Upsampling by nearest neighbour before a convolution is one transposed convolution.

Its taps are sums of the convolution's, for every pixel is read several times. Exact, also at the
borders: what is padded with zeros is the upsampled image, and a transposed convolution reads
nothing outside its own.
"""

from __future__ import annotations

import numpy as np

from edgegen.spec import Array

# How a resized image is read where that gives pixel i // factor, for whole factors.
NEAREST = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}


def summed(kernel: Array, factor: int) -> Array:
    """What a convolution (out, in, height, width) of an upsampled image is as a transposed one of
    the image itself: (in, out, height + factor - 1, width + factor - 1).

    A pixel is written `factor` times an axis, so its taps are shifted sums; added in float64.
    """
    out, inputs, high, wide = kernel.shape
    total = np.zeros((out, inputs, high + factor - 1, wide + factor - 1))
    for row in range(factor):
        for column in range(factor):
            total[:, :, row : row + high, column : column + wide] += kernel[:, :, ::-1, ::-1]
    return np.ascontiguousarray(total.transpose(1, 0, 2, 3).astype(np.float32))


def taken(kernel: Array, pads: list[int]) -> list[int]:
    """The padding of the transposed convolution: what its kernel reaches beyond the other's."""
    return [size - 1 - pad for size, pad in zip([*kernel.shape[2:]] * 2, pads, strict=True)]
