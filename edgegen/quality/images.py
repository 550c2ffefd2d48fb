"""How near images are to others: as sets (on features and on pixels), and one to one.

Images are (images, channels, height, width) with values in 0..1; see `scale`.
"""

from __future__ import annotations

import numpy as np

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import Figure, distances, finite, mean
from edgegen.quality.features import Extractor
from edgegen.spec import Array
from edgegen.verify import psnr_db

DIRECTIONS = 256  # that pixels are projected on
SIGMA, WINDOW = 1.5, 11  # the Gaussian that SSIM looks through, and its width
K1, K2 = 0.01, 0.03


def scale(images: Array, pixels: tuple[float, float]) -> Array:
    """Images in 0..1 as they would be drawn: what is beyond black and white is cut off.

    Raises:
        MismatchError: a pixel that is not finite.
    """
    finite(images, "images")
    low, high = pixels
    return np.asarray(np.clip((images.astype(np.float64) - low) / (high - low), 0, 1), np.float32)


def image_figures(fake: Array, real: Array, extractor: Extractor) -> dict[str, Figure]:
    """FID, KID, Inception Score, precision and recall on the extractor's features, and its name.

    Raises:
        UsageError: fewer than ten images.
        MismatchError: images of two shapes, or features that are not finite.
    """
    _same_shape(fake[:1], real[:1])
    return feature_figures(extractor.features(fake), extractor.features(real), extractor)


def feature_figures(fake: Array, real: Array, extractor: Extractor) -> dict[str, Figure]:
    """As `image_figures`, of features (images, features) that are there already."""
    found = {
        "fid": distances.jackknife(distances.fid, fake, real, "lower"),
        "kid": distances.jackknife(distances.kid, fake, real, "lower"),
        "precision": distances.jackknife(distances.precision, fake, real, "higher"),
        "recall": distances.jackknife(distances.recall, fake, real, "higher"),
    }
    if extractor.probabilities:
        classes = extractor.probabilities(fake)
        found["inception_score"] = distances.jackknife(
            lambda rows, _: distances.inception_score(rows), classes, classes, "higher"
        )
    return {f"{name}_{extractor.name}": figure for name, figure in found.items()}


def sliced_wasserstein(fake: Array, real: Array) -> Figure:
    """Distance of the two sets of images as points of pixels, along 256 fixed random directions.

    The root of the mean of W2^2; in units of a pixel, whose values are 0..1. Needs no extractor.

    Source: Rabin et al. 2011; Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters".
    """
    _same_shape(fake[:1], real[:1])
    drawn = np.random.default_rng(0).standard_normal((fake[0].size, DIRECTIONS))
    drawn /= np.linalg.norm(drawn, axis=0)
    along = [images.reshape(len(images), -1) @ drawn for images in (fake, real)]
    return distances.jackknife(_sliced, along[0], along[1], "lower")


def _sliced(fake: Array, real: Array) -> float:
    """From projections (images, directions): both sorted, which is the cheapest way to move one
    onto the other along a line. Sets of two sizes meet at the quantiles of the larger."""
    count = max(len(fake), len(real))
    at = (np.arange(count) + 0.5) / count
    ends = [np.quantile(rows, at, axis=0, method="inverted_cdf") for rows in (fake, real)]
    return float(np.sqrt(((ends[0] - ends[1]) ** 2).mean()))


def likeness(found: Array, wanted: Array) -> dict[str, Figure]:
    """PSNR in dB and SSIM of each image to its own reference, the means over images.

    PSNR is capped at 200 dB, which is what equal images have.

    Raises:
        MismatchError: other shapes or another number of images.
        UsageError: no images.
    """
    _same_shape(found, wanted)
    if not len(found):
        raise UsageError("no images to compare", "give at least one pair")
    psnr = [psnr_db(w, f, 1.0) for f, w in zip(found, wanted, strict=True)]
    return {
        "psnr_db": mean(np.array(psnr), "images", "higher", "dB"),
        "ssim": mean(ssim(found, wanted), "images", "higher"),
    }


def ssim(found: Array, wanted: Array) -> Array:
    """Structural similarity of each pair, (images,); 1 for equal ones.

    Through a Gaussian of 11x11, narrower where the images are, and only where it fits whole.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", equation 13.
    """
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    mx, my = _blur(x), _blur(y)
    vx, vy, both = _blur(x * x) - mx**2, _blur(y * y) - my**2, _blur(x * y) - mx * my
    above = (2 * mx * my + K1**2) * (2 * both + K2**2)
    below = (mx**2 + my**2 + K1**2) * (vx + vy + K2**2)
    return np.asarray((above / below).mean((1, 2, 3)))


def _blur(images: Array) -> Array:
    """The Gaussian mean around each pixel, along the height and then the width."""
    side = min(WINDOW, *images.shape[2:])
    at = np.arange(side) - (side - 1) / 2
    weights = np.exp(-0.5 * (at / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        views = np.lib.stride_tricks.sliding_window_view(images, side, axis=axis)
        images = views @ weights
    return images


def _same_shape(found: Array, wanted: Array) -> None:
    if found.shape != wanted.shape:
        raise MismatchError(
            f"images of shape {list(found.shape)}, wanted {list(wanted.shape)}",
            "compare images of one size and number of channels",
        )
