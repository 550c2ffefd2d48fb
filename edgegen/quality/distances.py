"""How far a set of images is from another: FID, KID, Inception Score, precision and recall.

All on features, (images, features), of whichever extractor; two figures compare only where the
extractor and the number of images were the same. FID is too large by a bias that falls with the
number of images; KID has none.

Standard errors are the delete-a-group jackknife's: the figure is computed ten times, each time
without another tenth of both sets. Source: Shao and Tu 1995, "The Jackknife and Bootstrap", 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import Better, Figure, finite
from edgegen.spec import Array

GROUPS = 10
NEAREST = 3  # neighbours that make up a manifold, as in the paper

Statistic = Callable[[Array, Array], float]


def jackknife(statistic: Statistic, fake: Array, real: Array, better: Better) -> Figure:
    """`statistic(fake, real)` and its standard error; rows are independent.

    Raises:
        UsageError: fewer than ten rows in one of them.
        MismatchError: another number of columns, or numbers that are not finite.
    """
    fewest = min(len(fake), len(real))
    enough(fewest)
    if fake.shape[1:] != real.shape[1:]:
        raise MismatchError(
            f"features of shape {list(fake.shape[1:])} and {list(real.shape[1:])}",
            "take both from one extractor",
        )
    finite(fake, "features of the model's images")
    finite(real, "features of the data's images")
    fake, real = fake.astype(np.float64), real.astype(np.float64)
    parts = [
        statistic(*(np.delete(rows, slice(n, None, GROUPS), axis=0) for rows in (fake, real)))
        for n in range(GROUPS)
    ]
    error = float(np.std(parts)) * math.sqrt(GROUPS - 1)
    return Figure(statistic(fake, real), error, fewest, "images", better)


def enough(count: int) -> None:
    """Raise `UsageError` for fewer images than the jackknife has groups."""
    if count < GROUPS:
        raise UsageError(f"{count} images, wanted {GROUPS} or more", f"use --num {GROUPS} or more")


def fid(fake: Array, real: Array) -> float:
    """Fréchet distance between the Gaussians of the two sets' means and covariances.

    The root of the product of the covariances A'A and B'B has the trace of the singular values of
    AB', so no root of a matrix is taken. Source: Heusel et al. 2017, arXiv:1706.08500.
    """
    a, b = _root(fake), _root(real)
    shift = float(((fake.mean(0) - real.mean(0)) ** 2).sum())
    cross = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return shift + float((a**2).sum()) + float((b**2).sum()) - 2 * cross


def _root(rows: Array) -> Array:
    """A with A'A the covariance of `rows`, and no more rows than columns."""
    root = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def kid(fake: Array, real: Array) -> float:
    """Squared maximum mean discrepancy, kernel (x.y / features + 1)^3, without bias.

    Source: Bińkowski et al. 2018, arXiv:1801.01401.
    """
    within = _off_diagonal_mean(_kernel(fake, fake)) + _off_diagonal_mean(_kernel(real, real))
    return within - 2 * float(_kernel(fake, real).mean())


def _kernel(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _off_diagonal_mean(square: Array) -> float:
    count = len(square)
    return float(square.sum() - np.trace(square)) / (count * (count - 1))


def inception_score(probabilities: Array) -> float:
    """exp of the mean KL of each image's classes from all images'; from 1 to the classes' number.

    `probabilities` is (images, classes). Source: Salimans et al. 2016, arXiv:1606.03498.
    """
    p = np.clip(probabilities, 1e-30, 1)
    return math.exp(float((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def precision(fake: Array, real: Array) -> float:
    """Share of `fake` that lies among `real`: within the third neighbour's distance of one.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991.
    """
    inside = _squares(fake, real) <= _radii(real)  # (fake, real)
    return float(inside.any(1).mean())


def recall(fake: Array, real: Array) -> float:
    """Share of `real` that lies among `fake`: low where the model makes few kinds of images."""
    return precision(real, fake)


def _squares(x: Array, y: Array) -> Array:
    """Squared distances, (x, y).

    What is within rounding of |x|^2 + |y|^2 - 2xy is 0, or copies of one image would differ.
    """
    centre = y.mean(0)
    x, y = x - centre, y - centre
    sums = (x**2).sum(1)[:, None] + (y**2).sum(1)
    squares = sums - 2 * x @ y.T
    return np.where(squares < 1e-11 * sums, 0, squares)


def _radii(rows: Array) -> Array:
    """Squared distance of each row to its third nearest neighbour."""
    return np.asarray(np.partition(_squares(rows, rows), NEAREST, axis=1)[:, NEAREST])
