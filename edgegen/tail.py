"""How high a high percentile may really be: MLPerf's early-stopping rule.

Of few samples the largest is mostly below the true p99. The rule says from how many samples on a
percentile may be quoted, and which of them it is surely (99 % and more) not above.

Source: github.com/mlcommons/inference, loadgen/early_stopping.cc and EarlyStopping in results.cc,
SingleStream (confidence 0.99, tolerance 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.99


def rank(count: int, q: int) -> int:
    """Which of `count` samples, counted from the largest as 1, bounds the q-th percentile.

    The largest t for which t or fewer samples lie above the percentile in less than 1 % of all
    measurements; 0 where there are too few samples for any but the very largest.
    """
    above = np.arange(1, count + 1)
    share = 1 - q / 100
    steps = np.log((count - above + 1) / above) + math.log(share) - math.log1p(-share)
    exactly = count * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    upto = np.logaddexp.accumulate(exactly)  # log P(that many or fewer above)
    most = int(np.searchsorted(upto, math.log(1 - CONFIDENCE))) - 1
    return max(most, 0)


def at_most(values: Sequence[float], q: int) -> float | None:
    """What the true q-th percentile is not above, 99 % sure; None of too few samples."""
    place = rank(len(values), q)
    return float(np.sort(values)[len(values) - place]) if place else None
