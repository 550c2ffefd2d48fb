"""Times from the raw samples: each one as a dot, their shares, tokens by position, and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair
import numpy as np

from edgegen.bootstrap import Floats
from edgegen.charts import look
from edgegen.charts.look import LABEL_AT, ROW, Figure
from edgegen.compare import Row
from edgegen.metrics import FASTER, SLOWER, TOO_FEW, steps_of
from edgegen.profile import SAMPLES_FOR, Profile
from edgegen.tables import number

MOST = 300  # dots of one profile, evenly from its sorted samples
BINS = 40
BOX = "bar from the first to the third quartile, line at the median"
ENOUGH = f"{SAMPLES_FOR[90]} and {SAMPLES_FOR[99]}"
TAIL = f"small marks at p90 and p99 where there are enough samples, {ENOUGH}"


def samples(profile: Profile, which: str) -> Floats:
    """All first or later steps of a profile, in ms."""
    return np.concatenate([np.asarray(step) for step in steps_of(profile, which)])


def strips(rows: Sequence[Row], profiles: Sequence[Profile], which: str, what: str) -> Figure:
    """Every sample of each profile as a dot, wide where they are dense; its quantiles over it."""
    drawn = [samples(profile, which) for profile in profiles]
    span = look.span(np.concatenate(drawn))
    dots = [dot for n, values in enumerate(drawn) for dot in _dots(n, values, span.log)]
    marks = [_marks(n, row.name, v) for n, (row, v) in enumerate(zip(rows, drawn, strict=True))]
    tails = [tail for n, values in enumerate(drawn) for tail in _tails(n, values)]
    x = altair.X("ms:Q", scale=span.scale, axis=span.axis(f"{what}, ms"))
    y = look.lines(len(rows))
    colour = look.by_row(len(rows))
    base = altair.Chart(look.data(marks))
    tip = [altair.Tooltip(f"{name}:N") for name in ("profile", "median", "quartiles", "samples")]
    chart = altair.layer(
        altair.Chart(look.data(dots)).mark_circle(size=16, opacity=0.5).encode(x, y, color=colour),
        base.mark_rule(strokeWidth=8, opacity=0.55).encode(
            x=altair.X("lower:Q"), x2="upper:Q", y=y, color=colour, tooltip=tip
        ),
        base.mark_tick(thickness=2.5, size=26, color=look.INK).encode(x="ms:Q", y=y, tooltip=tip),
        altair.Chart(look.data(tails))
        .mark_tick(thickness=1.5, size=13, color=look.INK)
        .encode(x="ms:Q", y=y, tooltip=["mark:N", "ms:Q"]),
        *look.names(base, "named", "width - 82", "median"),
    )
    said = "; ".join(f"{mark['profile']} {mark['median']}" for mark in marks)
    return look.figure(
        chart,
        height=ROW * len(rows),
        alt=f"{what}, every sample; medians: {said}",
        caption=f"{what[0].upper()}{what[1:]}: every sample a dot, {BOX}; {TAIL}.",
    )


def _dots(n: int, values: Floats, log: bool) -> list[dict[str, Any]]:
    order = np.sort(values)
    if len(order) > MOST:
        order = order[np.linspace(0, len(order) - 1, MOST).astype(int)]
    at = np.log(order) if log else order
    counts, edges = np.histogram(at, bins=BINS)
    inside = np.clip(np.digitize(at, edges) - 1, 0, BINS - 1)
    wide = 0.04 + 0.18 * counts[inside] / counts.max()
    ys = n + np.random.default_rng(n).uniform(-1, 1, len(at)) * wide
    return [
        {"n": n, "ms": look.short(ms), "y": round(y, 3)}
        for ms, y in zip(order.tolist(), ys.tolist(), strict=True)
    ]


def _marks(n: int, name: str, values: Floats) -> dict[str, Any]:
    lower, middle, upper = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return {
        "n": n,
        "y": n,
        "label": n + LABEL_AT,
        "profile": name,
        "named": f"{n + 1}  {name}",
        "lower": look.short(lower),
        "ms": look.short(middle),
        "upper": look.short(upper),
        "median": f"{number(middle)} ms",
        "quartiles": f"{number(lower)} to {number(upper)} ms",
        "samples": len(values),
    }


def _tails(n: int, values: Floats) -> list[dict[str, Any]]:
    return [
        {"n": n, "y": n, "mark": f"p{q}", "ms": look.short(float(np.percentile(values, q)))}
        for q in (90, 99)
        if len(values) >= SAMPLES_FOR[q]
    ]


def shares(rows: Sequence[Row], profiles: Sequence[Profile], which: str, what: str) -> Figure:
    """The share of samples that took no longer than so many ms, one curve a profile."""
    drawn = [np.sort(samples(profile, which)) for profile in profiles]
    span = look.span(np.concatenate(drawn))
    points = [
        {"n": n, "profile": row.name, "ms": look.short(ms), "share": round(share, 4)}
        for n, (row, values) in enumerate(zip(rows, drawn, strict=True))
        for ms, share in _curve(values)
    ]
    x = altair.X("ms:Q", scale=span.scale, axis=span.axis(f"{what}, ms"))
    y = altair.Y("share:Q", axis=altair.Axis(format="%", values=[0, 0.5, 0.9, 1], title=None))
    curves = altair.Chart(look.data(points)).mark_line(
        interpolate="step-after", strokeWidth=2, clip=True
    )
    levels = altair.Chart(look.data([{"share": 0.5}, {"share": 0.9}]))
    chart = altair.layer(
        levels.mark_rule(strokeDash=[3, 3]).encode(y="share:Q"),
        curves.encode(x, y, color=look.by_row(len(rows)), tooltip=["profile:N", "ms:Q", "share:Q"]),
    )
    return look.figure(
        chart,
        height=look.middling(len(rows)),
        alt=f"{what}: share of the samples that took no longer, one curve for each profile",
        caption=f"The share of samples that took no longer ({what}). Further left is faster, "
        "steeper is steadier; dashed: half of them, and nine in ten.",
    )


def _curve(values: Floats) -> list[tuple[float, float]]:
    """The steps of the empirical distribution of sorted `values`; at most `MOST` of them."""
    count = len(values)
    at = np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))
    steps = [(float(values[i]), (int(i) + 1) / count) for i in at]
    return [(float(values[0]), 0.0), *steps]


def positions(rows: Sequence[Row], profiles: Sequence[Profile]) -> Figure:
    """How long each token took by its place in the text: median and quartiles over the repeats."""
    points: list[dict[str, Any]] = []
    for n, (row, profile) in enumerate(zip(rows, profiles, strict=True)):
        steps = [step for step in profile.steps_ms if step]
        count = min(map(len, steps))
        table = np.array([step[:count] for step in steps])  # (repeats, tokens)
        for place, found in enumerate(np.percentile(table, [25, 50, 75], axis=0).T, start=2):
            lower, ms, upper = (look.short(float(q)) for q in found)
            own = {"n": n, "profile": row.name, "token": place}
            points.append(own | {"lower": lower, "ms": ms, "upper": upper})
    span = look.span([point[end] for point in points for end in ("lower", "upper")], zero=True)
    base = altair.Chart(look.data(points)).encode(
        altair.X("token:Q", axis=altair.Axis(title="token written", tickMinStep=1, grid=False)),
        color=look.by_row(len(rows)),
    )
    y = altair.Y("ms:Q", scale=span.scale, axis=span.axis("ms"))
    chart = altair.layer(
        base.mark_area(opacity=0.18).encode(y=altair.Y("lower:Q"), y2="upper:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, tooltip=["profile:N", "token:Q", "ms:Q"]),
    )
    return look.figure(
        chart,
        height=look.middling(len(rows)),
        alt="Time of each later token by its place in the text, median over the repeats",
        caption="Each later token by its place: median over the repeats, shaded from the first to "
        "the third quartile. A line that climbs is the price of a longer text.",
    )


def ratios(rows: Sequence[Row], metrics: dict[str, str]) -> Figure:
    """Each row's ratio to the first with its 95 % interval; green is faster, red slower."""
    lines = [
        (n, row, title, row.ratios[metric])
        for n, row in enumerate(rows)
        for metric, title in metrics.items()
        if metric in row.ratios
    ]
    found = [
        {
            "y": place,
            "label": place + LABEL_AT,
            "named": f"{n + 1}  {row.name}{title}",
            "ratio": look.short(ratio.value),
            "low": None if ratio.low is None else look.short(ratio.low),
            "high": None if ratio.high is None else look.short(ratio.high),
            "verdict": ratio.verdict,
            "median": f"×{ratio.value:.2f}",
        }
        for place, (n, row, title, ratio) in enumerate(lines)
    ]
    ends = [x for _, _, _, r in lines for x in (r.value, r.low, r.high, 1.0) if x is not None]
    span = look.Span(min(ends) / 1.08, max(ends) * 1.08, log=True)
    axis = span.axis("time, as a multiple of the first's")
    x = altair.X("ratio:Q", scale=span.scale, axis=axis)
    y, colour = look.lines(len(found)), _by_verdict()
    base = altair.Chart(look.data(found))
    tip = ["named:N", "ratio:Q", "low:Q", "high:Q", "verdict:N"]
    chart = altair.layer(
        altair.Chart(look.data([{"ratio": 1}])).mark_rule(strokeWidth=1.5).encode(x=x),
        base.mark_rule(strokeWidth=4, opacity=0.6).encode(
            x="low:Q", x2="high:Q", y=y, color=colour, tooltip=tip
        ),
        base.mark_circle(size=80, opacity=1).encode(x=x, y=y, color=colour, tooltip=tip),
        *look.names(base, "named", "width - 82", "median"),
    )
    said = "; ".join(f"{mark['named']} {mark['median']} {mark['verdict']}" for mark in found)
    return look.figure(
        chart,
        height=ROW * len(found),
        alt=f"Time over the first's: {said}",
        caption=f"Against {rows[0].name}: the ratio of times and its 95 % interval. Left of 1 is "
        "faster; an interval that holds 1 is no difference.",
    )


def _by_verdict() -> Any:
    shades = {FASTER: look.GOOD, SLOWER: look.BAD, "no difference detectable": look.SOFT}
    shades[TOO_FEW] = look.SOFT
    scale = altair.Scale(domain=list(shades), range=list(shades.values()))
    return altair.Color("verdict:N", scale=scale, legend=None)
