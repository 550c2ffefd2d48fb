"""The metrics of a profile and the ratios between two, each with its 95 % interval.

Metrics are called as in `gates.METRICS`: p50, ttft, rate, peak_rss, quality.fid, ...
"""

from __future__ import annotations

import math

from msgspec import Struct

from edgegen import bootstrap, gates, tail
from edgegen.bootstrap import Floats
from edgegen.profile import SAMPLES_FOR, Profile, percentile, rate

FASTER, SLOWER, NEITHER = "faster", "slower", "no difference detectable"
TOO_FEW = "too few samples"
MOST_MORE = 1000  # more than this is no advice
# Which way a quality figure is good, by what its name begins with.
HIGHER = (
    *("accuracy", "bleu", "elbo", "inception", "precision"),
    *("psnr", "recall", "rouge", "ssim", "top1"),
)
LOWER = (
    *("bits_per", "fid", "kid", "kl", "loss"),
    *("mse", "nll", "perplexity", "reconstruction", "sliced"),
)
# Where each sampled metric lies: its steps, and which percentile of these. Text's main steps are
# its later tokens, so that TPOT is its p50.
SAMPLED = {
    "p50": ("main", 50),
    "p90": ("main", 90),
    "p99": ("main", 99),
    "ttft": ("first", 50),
    "tpot": ("main", 50),
}


class Estimate(Struct, frozen=True, forbid_unknown_fields=True):
    """A value in `unit`, and its 95 % interval where it has one.

    `valid` is false for a percentile of fewer samples than it needs. `at_most` is what the true p90
    or p99 is not above, 99 % sure, where there are enough: see `tail`.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    valid: bool = True
    at_most: float | None = None


class Ratio(Struct, frozen=True, forbid_unknown_fields=True):
    """A metric divided by the first profile's, below 1 when it is less; `low` to `high` is 95 %.

    `verdict` is about time: faster, slower, no difference detectable, too few samples; empty for
    what is no time. Where no difference was detectable, `more` is about how many more of `of`
    (rounds, repeats) would show one as large as it looks four times out of five, and None where it
    looks like none, or like more than `MOST_MORE`.
    """

    value: float
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    more: int | None = None
    of: str = ""


def steps_of(profile: Profile, which: str) -> list[tuple[float, ...]]:
    """The samples of each repeat: its first step, its later ones, or those that count most."""
    if which == "first" or (which == "main" and not any(profile.steps_ms)):
        return [(ms,) for ms in profile.first_ms]
    return list(profile.steps_ms)


def _metrics(profile: Profile) -> list[str]:
    """The sampled metrics that a profile has: TTFT and TPOT are text's."""
    text = any(profile.steps_ms)
    return [name for name in SAMPLED if text or name not in ("ttft", "tpot")]


def resampled(
    profile: Profile, number: int, resamples: int = bootstrap.RESAMPLES
) -> dict[str, Floats]:
    """Each sampled metric in each resample, shape (resamples,); `number` tells profiles apart."""
    counts = bootstrap.draw(profile, number, resamples)
    found: dict[str, Floats] = {}
    for which in ("main", "first"):
        names = [name for name in _metrics(profile) if SAMPLED[name][0] == which]
        if names:
            qs = sorted({SAMPLED[name][1] for name in names})
            columns = bootstrap.percentiles(steps_of(profile, which), counts, qs).T
            found |= {name: columns[qs.index(SAMPLED[name][1])] for name in names}
    return found


def _pooled(profile: Profile, which: str) -> list[float]:
    return [ms for steps in steps_of(profile, which) for ms in steps]


def _value(profile: Profile, metric: str) -> float:
    which, q = SAMPLED[metric]
    return percentile(_pooled(profile, which), q)[0]


def estimates(profile: Profile, drawn: dict[str, Floats]) -> dict[str, Estimate]:
    """Every metric that `profile` has; `drawn` is its own `resampled`."""
    found: dict[str, Estimate] = {}
    for metric in _metrics(profile):
        which, q = SAMPLED[metric]
        value, count = _value(profile, metric), sum(map(len, steps_of(profile, which)))
        ends = bootstrap.interval(value, drawn[metric], bootstrap.blocks(profile))
        low, high = ends or (None, None)
        above = tail.at_most(_pooled(profile, which), q) if q > 50 else None
        found[metric] = Estimate(value, "ms", low, high, count >= SAMPLES_FOR[q], above)
    main, each = found["p50"], profile.request.batch * 1e3
    found["rate"] = Estimate(
        each / main.value,
        rate(profile)[1],
        each / main.high if main.high else None,
        each / main.low if main.low else None,
        main.valid,
    )
    return found | {m: Estimate(v, gates.METRICS.get(m, "")) for m, v in _single(profile).items()}


def _single(profile: Profile) -> dict[str, float]:
    """What is known once and not sampled."""
    known = {
        "load": profile.load_ms,
        "cold": profile.cold_ms,
        "peak_rss": profile.peak_rss_mb,
        "size": profile.size_mb,
        "energy": profile.energy_j,
    }
    quality = {f"quality.{name}": value for name, value in profile.quality.items()}
    return {name: value for name, value in known.items() if value is not None} | quality


def ratios(
    base: Profile, first: dict[str, Floats], other: Profile, second: dict[str, Floats]
) -> dict[str, Ratio]:
    """Every metric that both have, the other's over the base's; `first`, `second`: `resampled`."""
    found = {m: _ratio(base, first, other, second, m) for m in _metrics(other) if m in first}
    p50 = found["p50"]
    found["rate"] = Ratio(
        1 / p50.value, 1 / p50.high if p50.high else None, 1 / p50.low if p50.low else None
    )
    was, now = _single(base), _single(other)
    alike = base.energy_source == other.energy_source  # else a model is held against a meter
    return found | {
        m: Ratio(now[m] / was[m])
        for m in now
        if was.get(m, 0) > 0 and (m != "energy" or alike)  # of zero or less there are no percent
    }


def _ratio(
    base: Profile, first: dict[str, Floats], other: Profile, second: dict[str, Floats], metric: str
) -> Ratio:
    """Round by round where the two took turns; of the pooled percentiles where they did not."""
    which, q = SAMPLED[metric]
    fewest = min(len(_pooled(profile, which)) for profile in (base, other))
    if q > 50 and fewest < SAMPLES_FOR[q]:
        return Ratio(_value(other, metric) / _value(base, metric), verdict=TOO_FEW)
    if bootstrap.paired(base, other):
        return between(base, other, metric)
    value = _value(other, metric) / _value(base, metric)
    count = min(bootstrap.blocks(base), bootstrap.blocks(other))
    ends = bootstrap.interval(value, second[metric] / first[metric], count, profiles=2)
    reach = math.log(ends[1] / value) if ends else None
    return _judged(math.log(value), reach, count, "repeats")


def between(base: Profile, other: Profile, metric: str = "p50") -> Ratio:
    """The ratio of two that took turns, round by round."""
    which, q = SAMPLED[metric]
    steps = steps_of(base, which), steps_of(other, which)
    logs = bootstrap.logs_by_round(*steps, base.rounds, q)
    return _judged(*bootstrap.location(logs), len(logs), "rounds")


def _judged(log_ratio: float, reach: float | None, count: int, of: str) -> Ratio:
    value = math.exp(log_ratio)
    if reach is None:
        return Ratio(value, verdict=TOO_FEW)
    low, high = math.exp(log_ratio - reach), math.exp(log_ratio + reach)
    verdict = FASTER if high < 1 else SLOWER if low > 1 else NEITHER
    if verdict != NEITHER:
        return Ratio(value, low, high, verdict)
    more = bootstrap.rounds_to_decide(log_ratio, reach, count) - count
    asked = max(1, math.ceil(more)) if more <= MOST_MORE else None
    return Ratio(value, low, high, verdict, asked, of)


def better(name: str) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where nobody knows."""
    if name.startswith("quality."):
        figure = name.removeprefix("quality.")
        return 1 if figure.startswith(HIGHER) else -1 if figure.startswith(LOWER) else 0
    return 1 if name == "rate" else -1
