"""Percentiles of a profile, their uncertainty, and that of the ratio between two of them.

What is resampled is whole repeats, never single tokens: tokens of one repeat are slow or fast
together. Where a profile was taken in several processes, what is resampled is whole rounds, and
where two took turns it is the rounds' ratios, so that what a round did to both cancels.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 6.
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
FEWEST = 5  # blocks: with fewer, an interval is a guess
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
    times = rng.multinomial(len(pieces), np.full(len(pieces), 1 / len(pieces)), size=resamples)
    return np.repeat(times, [len(piece) for piece in pieces], axis=1)


def ratios_by_round(
    base: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    rounds: int,
    q: int,
    resamples: int = RESAMPLES,
) -> tuple[float, Floats]:
    """The mean over rounds of the ratio other / base of their percentiles, and its resamples.

    A geometric mean: two profiles in the other order give exactly the inverse.
    """
    at = [np.array([np.percentile(p, q) for p in _by_round(x, rounds)]) for x in (base, other)]
    logs = np.log(at[1] / at[0])
    picked = np.random.default_rng(0).integers(rounds, size=(resamples, rounds))
    return float(np.exp(logs.mean())), np.exp(logs[picked].mean(axis=1))


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
            _weighted(values, counts[start : start + rows][:, owner], qs)
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
