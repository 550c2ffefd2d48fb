"""A metric over the days it was measured on: a line for each bundle, engine, device and request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import altair

from edgegen.charts import look
from edgegen.charts.look import Figure, Span
from edgegen.history import History, Trend
from edgegen.tables import number

HEIGHT = 300
APART = 15 / HEIGHT  # of the height: what a number takes
SAME, OTHER = "circle", "diamond"  # the engine's version, against the profile before


def groups(history: History) -> list[tuple[str, tuple[Trend, ...]]]:
    """What is drawn in one picture: all, or each bundle where there are more than colours."""
    if len(history.trends) <= look.COLOURS:
        return [("", history.trends)]
    bundles = dict.fromkeys(trend.bundle for trend in history.trends)
    return [(name, tuple(t for t in history.trends if t.bundle == name)) for name in bundles]


def lines(history: History, trends: Sequence[Trend]) -> Figure:
    """A dot for each profile, joined in the order of their dates; its number at the last."""
    rows = [row for n, trend in enumerate(trends) for row in _rows(n, trend, history.unit)]
    unit = f", {history.unit}" if history.unit else ""
    span = look.span([row["value"] for row in rows])
    x = altair.X(
        "measured:T",
        scale=altair.Scale(type="utc", padding=22),
        axis=altair.Axis(title=None, tickCount=5, labelOverlap="greedy", grid=False, **_days(rows)),
    )
    y = altair.Y("value:Q", scale=span.scale, axis=span.axis(f"{history.metric}{unit}"))
    colour = look.by_row(len(trends))
    base = altair.Chart(look.data(rows)).encode(x=x, y=y)
    shape = altair.Scale(domain=[SAME, OTHER], range=[SAME, OTHER])
    tip = [altair.Tooltip(f"{name}:N") for name in ("profile", "when", "found", "engine", "file")]
    chart = altair.layer(
        base.mark_line(strokeWidth=2).encode(color=colour, detail="n:N"),
        base.mark_point(filled=True, opacity=1).encode(
            color=colour,
            shape=altair.Shape("shape:N", scale=shape, legend=None),
            size=altair.Size("size:Q", scale=None, legend=None),
            tooltip=tip,
        ),
        altair.Chart(look.data(_numbers(trends, span)))
        .mark_text(dx=9, align="left", fontWeight=600)
        .encode(x=x, y=y, text="number:N"),
    )
    said = "; ".join(f"{trend.name} {_ends(trend, history.unit)}" for trend in trends)
    changed = any(row["shape"] == OTHER for row in rows)
    return look.figure(
        chart,
        height=HEIGHT,
        alt=f"{history.metric} over time: {said}",
        caption="Each mark is a profile, at the time (UTC) it was taken."
        + (" ◆: with another version of the engine than the one before." if changed else ""),
    )


def picture(history: History) -> Any:
    """All trends in one Altair chart with a legend, for a file that is only a picture."""
    unit = f", {history.unit}" if history.unit else ""
    hosts = {trend.device_name for trend in history.trends}
    rows = [
        row | ({"profile": f"{row['profile']} ({trend.device_name})"} if len(hosts) > 1 else {})
        for n, trend in enumerate(history.trends)
        for row in _rows(n, trend, history.unit)
    ]
    x = altair.X("measured:T", title=None, scale=altair.Scale(type="utc"))
    y = altair.Y("value:Q", title=f"{history.metric}{unit}", scale=altair.Scale(zero=False))
    legend = altair.Legend(orient="bottom", columns=1, labelLimit=0, title=None)
    chart = altair.Chart(look.data(rows)).mark_line(point=True)
    return chart.encode(x, y, altair.Color("profile:N", legend=legend, sort=None)).properties(
        width=720, height=360
    )


def _rows(n: int, trend: Trend, unit: str) -> list[dict[str, Any]]:
    versions = [point.engine_version for point in trend.points]
    other = [False, *(before != after for before, after in pairwise(versions))]
    return [
        {
            "n": n,
            "profile": trend.name,
            "measured": point.created,
            "when": point.created.replace("T", " ").replace("Z", " UTC"),
            "value": look.short(point.value),
            "found": f"{number(point.value)} {unit}".rstrip(),
            "engine": f"{trend.engine} {point.engine_version}",
            "file": point.file,
            "shape": OTHER if other[at] else SAME,
            "size": 150 if other[at] else 70,
        }
        for at, point in enumerate(trend.points)
    ]


def _days(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of a day or two Vega would write the hours alone."""
    few = len({row["measured"][:10] for row in rows}) < 3
    return {"format": "%b %d %H:%M"} if few else {}


def _numbers(trends: Sequence[Trend], span: Span) -> list[dict[str, Any]]:
    """The number of each trend, at its last profile; moved up where it would cover another."""
    ends = sorted((trend.points[-1].value, n) for n, trend in enumerate(trends))
    found, above = [], dict[str, float]()  # above: of each day, where the next may stand
    for value, n in ends:
        when = trends[n].points[-1].created
        share = max(span.share(value), above.get(when[:10], 0.0))
        above[when[:10]] = share + APART
        found.append({"number": str(n + 1), "measured": when, "value": span.at(share)})
    return found


def _ends(trend: Trend, unit: str) -> str:
    first, last = trend.points[0], trend.points[-1]
    now = f"{number(last.value)} {unit}".rstrip()
    if len(trend.points) == 1:
        return f"{now} on {last.created[:10]}"
    return f"{number(first.value)} to {now}, {first.created[:10]} to {last.created[:10]}"
