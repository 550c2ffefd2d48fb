"""How good a model is: figures, each with its standard error and what it was counted over.

text.py        perplexity, bits per byte, next-token KL, top-1 agreement
overlap.py     BLEU and ROUGE of greedy continuations
images.py      sliced Wasserstein distance, PSNR, SSIM
distances.py   FID, KID, Inception Score, precision and recall, on features of any extractor
bound.py       ELBO, KL and reconstruction error of a VAE
features.py    what an extractor is; features of a data set are kept between runs
efficientnet.py, nets.py    the torch side: the extractor, and nets that are not exported yet
subject.py     a model under judgement: a bundle on an engine and a net in memory look the same
sheet.py       samples side by side

`edgegen.evaluate` puts them together. The numbers are computed in numpy, the same on all engines.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from msgspec import Struct

from edgegen.errors import MismatchError
from edgegen.spec import Array

Better = Literal["lower", "higher"]


class Figure(Struct, frozen=True, forbid_unknown_fields=True):
    """One figure. `error` is its standard error, None where there is nothing to tell it from.

    `count` is how many of `of` (images, windows, texts) it was computed from.
    """

    value: float
    error: float | None
    count: int
    of: str
    better: Better
    unit: str = ""


class Quality(Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one model, and everything needed to have them again.

    `protocol` says how much of the data was used and how; `skipped` why a figure is not there.
    """

    model: str
    family: str
    precision: str
    engine: str
    device: str
    data: str
    against: str
    seed: int
    protocol: str
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()
    skipped: dict[str, str] = {}

    def numbers(self) -> dict[str, float]:
        """The values alone, by name: what a manifest, a profile and a gate hold."""
        return {name: figure.value for name, figure in self.figures.items()}


def mean(values: Array, of: str, better: Better, unit: str = "") -> Figure:
    """The mean of independent `values`, (count,), and its standard error.

    Raises:
        MismatchError: a value that is not finite.
    """
    finite(values, f"{of} by {of}")
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return Figure(float(np.mean(values)), error, count, of, better, unit)


def finite(values: Array, what: str) -> None:
    """Raise `MismatchError`, saying how many and where first, unless every number is finite."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = tuple(int(n) for n in np.argwhere(wrong)[0])
        raise MismatchError(
            f"{what}: {int(wrong.sum())} of {values.size} numbers are not finite, "
            f"the first at {list(first)}",
            "the model overflows: look for the layer with edgegen verify, or a higher precision",
        )
