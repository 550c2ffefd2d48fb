"""Percentiles of a profile, their uncertainty, and that of the ratio between two of them.

What is resampled is whole repeats, never single tokens: tokens of one repeat are slow or fast
together. Where a profile was taken in several processes, what is resampled is whole rounds, and
where two took turns it is the rounds' ratios, so that what a round did to both cancels.

The ratio of two that took turns is the mean over rounds of the logarithm of the ratio of the
round's medians. From ten rounds on, the lowest and the highest 15 % of rounds are left out of the
mean: a neighbour that woke up during one process says nothing about the other.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgegen.profile import Profile

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8  # of the comparisons that are to show a difference that is there
FEWEST = 5  # blocks: with fewer, an interval is a guess
TRIM = 0.15  # of the rounds, left out at each end
TRIM_FROM = 10  # rounds: of fewer, none can be spared
CHUNK = 4_000_000  # resampled values in memory at a time

Counts = NDArray[np.int64]  # (resamples, repeats): how often each repeat was drawn
Floats = NDArray[np.float64]


def blocks(profile: Profile) -> int:
    """How many independent pieces there are: rounds, or repeats where rounds are too few."""
    return profile.rounds if profile.rounds >= FEWEST else len(profile.first_ms)


def paired(one: Profile, other: Profile) -> bool:
    """Did the two take turns, often enough for the rounds to be compared one by one?"""
    alike = one.block == other.block != "" and one.rounds == other.rounds
    return alike and one.rounds >= FEWEST


def draw(profile: Profile, number: int, resamples: int = RESAMPLES) -> Counts:
    """How often each resample draws each repeat; `number` tells profiles apart."""
    rng = np.random.default_rng(number)
    pieces = np.array_split(np.arange(len(profile.first_ms)), blocks(profile))
    picked = rng.integers(len(pieces), size=(resamples, len(pieces)))
    picked += np.arange(resamples)[:, None] * len(pieces)  # a row of the table each
    times = np.bincount(picked.ravel(), minlength=picked.size).reshape(picked.shape)
    return np.repeat(times, [len(piece) for piece in pieces], axis=1)


def logs_by_round(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], rounds: int, q: int
) -> Floats:
    """The logarithm of the ratio other / base of their q-th percentiles; shape (rounds,)."""
    at = [np.array([np.percentile(p, q) for p in _by_round(x, rounds)]) for x in (base, other)]
    found: Floats = np.log(at[1] / at[0])
    return found


def from_round_to_round(repeats: Sequence[Sequence[float]], rounds: int, q: int) -> Floats:
    """The logarithm of the ratio of each round of a profile to the one before; (rounds - 1,).

    Two fresh processes of one bundle, one soon after the other: an A/A pair.
    """
    at = np.array([np.percentile(part, q) for part in _by_round(repeats, rounds)])
    found: Floats = np.diff(np.log(at))
    return found


def spread(logs: Floats) -> float:
    """The standard deviation of one of `logs`, as `location` sees it: without the outermost."""
    return float(_trimmed(logs)[1]) * math.sqrt(len(logs))


def location(logs: Floats, resamples: int = RESAMPLES) -> tuple[float, float | None]:
    """The trimmed mean of `logs` and how far its 95 % interval reaches to each side.

    Symmetric in the logarithm: two profiles in the other order give exactly the inverse. The reach
    is that of the symmetric studentized bootstrap; of fewer than ten it is Student's t; of fewer
    than five there is none.

    Source: Hall 1988, JRSS B 50 (symmetric bootstrap-t); Tukey and McLaughlin 1963, Sankhya A 25
    (the standard error of a trimmed mean, from the winsorized variance).
    """
    middle, error = (float(x) for x in _trimmed(logs))
    count = len(logs)
    if count < FEWEST:
        return middle, None
    if count < TRIM_FROM or not error:
        return middle, student_t((1 + LEVEL) / 2, count - 1) * error
    picked = np.random.default_rng(0).integers(count, size=(resamples, count))
    means, errors = _trimmed(logs[picked])
    known = errors > 0  # a resample of equal rounds has no spread to be measured by
    away = np.abs(means[known] - middle) / errors[known]
    return middle, float(np.quantile(away, LEVEL)) * error


def _trimmed(logs: Floats) -> tuple[Floats, Floats]:
    """Trimmed mean and its standard error along the last axis."""
    count = logs.shape[-1]
    cut = int(TRIM * count) if count >= TRIM_FROM else 0
    inside = np.sort(logs, axis=-1)[..., cut : count - cut]
    if count < 2:
        return inside.mean(axis=-1), np.zeros(logs.shape[:-1])
    winsorized = np.clip(logs, inside[..., :1], inside[..., -1:])
    share = 1 - 2 * cut / count
    return inside.mean(axis=-1), winsorized.std(axis=-1, ddof=1) / (share * math.sqrt(count))


def rounds_to_decide(log_ratio: float, reach: float, count: int) -> float:
    """How many blocks in all would show a difference of `log_ratio` four times out of five.

    From `count` blocks whose interval reaches `reach`, which shrinks with the root of their number:
    for power 80 % it has to come down to 1.96 / (1.96 + 0.84) of the difference. Infinite for none.

    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, 2.4.
    """
    if not log_ratio:
        return math.inf
    sure, power = NormalDist().inv_cdf((1 + LEVEL) / 2), NormalDist().inv_cdf(POWER)
    return count * (reach / abs(log_ratio) * (sure + power) / sure) ** 2


def _by_round(repeats: Sequence[Sequence[float]], rounds: int) -> list[Floats]:
    parts = np.array_split(np.arange(len(repeats)), rounds)
    return [np.concatenate([repeats[n] for n in part]) for part in parts]


def percentiles(repeats: Sequence[Sequence[float]], counts: Counts, qs: Sequence[int]) -> Floats:
    """The percentiles `qs` of all values, in each resample; shape (resamples, len(qs)).

    Exactly numpy's percentile of the drawn values, without writing these out: they are sorted
    once, and a resample only changes how often each counts.
    """
    values = np.concatenate([np.asarray(r, dtype=np.float64) for r in repeats])
    owner = np.repeat(np.arange(len(repeats)), [len(r) for r in repeats])
    order = np.argsort(values)
    values, owner = values[order], owner[order]
    rows = max(1, CHUNK // len(values))
    return np.concatenate(
        [
            # `take`, for an index would give columns that lie apart in memory
            _weighted(values, counts[start : start + rows].take(owner, axis=1), qs)
            for start in range(0, len(counts), rows)
        ]
    )


def _weighted(values: Floats, weights: Counts, qs: Sequence[int]) -> Floats:
    """Percentiles of sorted `values`, the n-th counted `weights[:, n]` times."""
    upto = np.cumsum(weights, axis=1)  # (resamples, values)
    drawn = upto[:, -1:].copy()
    rank = (drawn - 1) * np.asarray(qs) / 100  # (resamples, qs), numpy's "linear"
    low = np.floor(rank).astype(np.int64)
    # One search for all rows: each is lifted above the one before.
    lift = np.arange(len(upto))[:, None] * (drawn.max() + 1)
    upto += lift
    start = np.arange(len(upto))[:, None] * len(values)

    def at(position: Counts) -> Floats:
        n = np.searchsorted(upto.ravel(), (position + lift).ravel(), side="right")
        found: Floats = values[n.reshape(position.shape) - start]
        return found

    below, above = at(low), at(np.minimum(low + 1, drawn - 1))
    percentiles: Floats = below + (above - below) * (rank - low)
    return percentiles


def interval(
    value: float, resampled: Floats, independent: int, profiles: int = 1
) -> tuple[float, float] | None:
    """The 95 % interval around `value`, from how much its resamples vary; None for too few blocks.

    Symmetric in the logarithm, as a time or a ratio is. The number of blocks, `independent` in
    each of the `profiles` that were resampled, sets the degrees of freedom.

    Source: Efron and Tibshirani 1993, chapter 12 (the bootstrap standard error, with Student's t).
    """
    if independent < FEWEST:
        return None
    # A resample of n pieces varies less than n pieces do, by (n - 1) / n.
    error = float(np.log(resampled).std()) * math.sqrt(independent / (independent - 1))
    reach = math.exp(student_t((1 + LEVEL) / 2, profiles * (independent - 1)) * error)
    return value / reach, value * reach


def student_t(p: float, df: int) -> float:
    """The p-quantile of Student's t; off by 0.3 % at 4 degrees of freedom, less above.

    Source: Abramowitz and Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / df**n for n, term in enumerate(terms)))
