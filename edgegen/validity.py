"""What to know before believing a profile: few samples, drift, heat, two modes, a busy machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist, median

import numpy as np

from edgegen.profile import SAMPLES_FOR, Profile, samples

DRIFT_SHARE = 0.05  # of the median, over the whole measurement
DRIFT_P = 0.01
THROTTLED_SHARE = 0.9  # of the clock at the start
HOT_C = 85.0  # processors throttle from 80 (small boards) to 100 °C
BUSY_SHARE = 0.5  # of the cores, already taken when the measurement began
MIXED = ("auto", "hetero", "multi")


def flags(profile: Profile) -> tuple[str, ...]:
    """One sentence for each doubt about `profile`, beginning with its name and a colon."""
    series = _series(profile)
    found = [_few(samples(profile)), _drift(series), _modes(series), _clock(profile)]
    return tuple(f for f in [*found, _heat(profile), _busy(profile), _fallback(profile)] if f)


def slope(profile: Profile) -> tuple[float, float]:
    """How much slower the runs became from the first to the last, and its p-value: see `drift`."""
    return drift(_series(profile))


def _series(profile: Profile) -> list[float]:
    """One time for each repeat: the median of its later steps, or the whole run."""
    repeats = zip(profile.first_ms, profile.steps_ms, strict=True)
    return [median(steps) if steps else first for first, steps in repeats]


def _few(values: Sequence[float]) -> str:
    short = [f"p{q} needs {n}" for q, n in SAMPLES_FOR.items() if len(values) < n]
    return f"few samples: {len(values)}; {', '.join(short)}" if short else ""


def drift(values: Sequence[float]) -> tuple[float, float]:
    """Change from the first to the last value as a share of the median, and its p-value.

    The slope is Theil and Sen's, the test Mann and Kendall's: neither minds outliers.

    Source: Mann 1945, Econometrica 13; Sen 1968, JASA 63.
    """
    x = np.asarray(values)
    n = len(x)
    if n < 3:
        return 0.0, 1.0
    i, j = np.triu_indices(n, 1)
    slope = np.median((x[j] - x[i]) / (j - i))
    score = float(np.sign(x[j] - x[i]).sum())
    z = max(abs(score) - 1, 0) / (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    return float(slope * (n - 1) / np.median(x)), 2 * (1 - NormalDist().cdf(z))


def _drift(series: Sequence[float]) -> str:
    change, p = drift(series)
    if abs(change) < DRIFT_SHARE or p >= DRIFT_P:
        return ""
    return f"drift: {change:+.0%} from the first repeat to the last (p={p:.2g})"


def modes(values: Sequence[float]) -> tuple[float, float] | None:
    """The medians of two clearly separate groups of values, where there are two.

    Groups of at least a fifth each, at least a tenth of the lower apart, and further apart than
    either is wide.
    """
    x = np.sort(np.asarray(values))
    side = max(3, len(x) // 5)
    if len(x) < 2 * side:
        return None
    gaps = np.diff(x)[side - 1 : len(x) - side]
    cut = int(np.argmax(gaps)) + side
    low, high = x[:cut], x[cut:]
    gap = high[0] - low[-1]
    if gap < max(0.1 * np.median(low), np.ptp(low), np.ptp(high)):
        return None
    return float(np.median(low)), float(np.median(high))


def _modes(series: Sequence[float]) -> str:
    found = modes(series)
    return f"two modes: repeats gather at {found[0]:.3g} and {found[1]:.3g} ms" if found else ""


def _ends(profile: Profile, what: str) -> tuple[float | None, float | None]:
    """A figure at the start and at the end: the GPU's own, where it ran there."""
    key = f"gpu_{what}" if profile.device.startswith("gpu") else what
    start, end = (profile.environment.get(f"{key}_{when}") for when in ("start", "end"))
    return start, end


def _clock(profile: Profile) -> str:
    """The clock fell: the device throttled, or the governor let it rest."""
    start, end = _ends(profile, "clock_mhz")
    if not start or not end or end >= THROTTLED_SHARE * start:
        return ""
    return f"throttled: the clock went from {start:.0f} to {end:.0f} MHz"


def _heat(profile: Profile) -> str:
    """The hottest sensor: a device at its limit lowers its clock, now or in the next minute."""
    start, end = _ends(profile, "heat_c")
    if not end or end < HOT_C:
        return ""
    return f"hot: {end:.0f} °C at the end, {start or 0:.0f} °C at the start"


def _busy(profile: Profile) -> str:
    load = profile.environment.get("load_1min")
    cores = profile.environment.get("usable_cores")
    if not load or not cores or load <= BUSY_SHARE * cores:
        return ""
    return f"busy machine: load average {load:.1f} on {cores:g} cores before the first run"


def _fallback(profile: Profile) -> str:
    """The share of operator time on the CPU, where another device was asked for."""
    if profile.device.partition(":")[0] in ("cpu", *MIXED):
        return ""
    total = sum(o.total_ms for o in profile.operators)
    there = [o for o in profile.operators if o.device == "cpu"]
    if not there:
        return ""
    share = sum(o.total_ms for o in there) / total
    kinds = ", ".join(sorted({o.kind for o in there}))
    return f"fallback: {share:.0%} of operator time on cpu ({kinds})"
