"""Latency against what it costs: size, memory, energy, quality; the front marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair

from edgegen.charts import look
from edgegen.charts.look import Figure
from edgegen.compare import Row
from edgegen.metrics import better
from edgegen.tables import number

WORDS = {"size": "size on disk", "peak_rss": "peak memory", "energy": "energy"}
ON_FRONT = "on the front"


def figures(rows: Sequence[Row], over: Sequence[str]) -> list[Figure]:
    """A plot for each of the metrics that the front is over, but latency itself."""
    others = [metric for metric in over if metric not in ("p50", "ttft", "tpot")]
    return [against(rows, metric) for metric in others]


def against(rows: Sequence[Row], metric: str) -> Figure:
    """Each row by its time and by `metric`; a line through those that none beats in these two."""
    points = [_point(n, row, metric) for n, row in enumerate(rows)]
    unit = rows[0].values[metric].unit
    word = WORDS.get(metric, metric.removeprefix("quality."))
    x_span = look.span([p[end] for p in points for end in ("low", "high")])
    y_span = look.span([point["value"] for point in points])
    x = altair.X("ms:Q", scale=x_span.scale, axis=x_span.axis(f"{_time(rows)}, ms"))
    y_axis = y_span.axis(f"{word}, {unit}" if unit else word)
    y = altair.Y("value:Q", scale=y_span.scale, axis=y_axis)
    way = better(metric)
    base = altair.Chart(look.data(points))
    tip = ["profile:N", "time:N", "shown:N", "front:N"]
    chart = altair.layer(
        altair.Chart(look.data(_edge(points, way)))
        .mark_line(interpolate="step-after", strokeDash=[4, 4], color=look.SOFT, strokeWidth=1.5)
        .encode(x=x, y=y),
        base.mark_rule(strokeWidth=2, opacity=0.6).encode(
            x="low:Q", x2="high:Q", y=y, color=look.by_row(len(rows))
        ),
        base.mark_point(filled=True, size=190, opacity=1).encode(
            x, y, color=look.by_row(len(rows)), shape=_shape(), tooltip=tip
        ),
        base.mark_text(dy=-15, fontWeight=600).encode(x=x, y=y, text="number:N"),
    )
    said = "; ".join(f"{p['profile']} {p['time']}, {p['shown']}, {p['front']}" for p in points)
    where = "upper left" if way > 0 else "lower left"
    return look.figure(
        chart,
        height=240,
        alt=f"{_time(rows)} against {word}: {said}",
        caption=f"Time against {word}: {where} is better. The dashed line joins what "
        "nothing beats in these two. ◆: nothing else is as good at everything; ●: something is.",
    )


def _time(rows: Sequence[Row]) -> str:
    return "time per output token" if "tpot" in rows[0].values else "time of a run"


def _point(n: int, row: Row, metric: str) -> dict[str, Any]:
    time, cost = row.values["p50"], row.values[metric]
    return {
        "n": n,
        "number": str(n + 1),
        "profile": row.name,
        "ms": look.short(time.value),
        "low": look.short(time.value if time.low is None else time.low),
        "high": look.short(time.value if time.high is None else time.high),
        "value": look.short(cost.value),
        "time": f"{number(time.value)} ms",
        "shown": f"{number(cost.value)} {cost.unit}".rstrip(),
        "front": f"beaten by {row.beaten_by}" if row.beaten_by else ON_FRONT,
        "on": not row.beaten_by,
    }


def _shape() -> Any:
    scale = altair.Scale(domain=[True, False], range=["diamond", "circle"])
    return altair.Shape("on:N", scale=scale, legend=None)


def _edge(points: Sequence[dict[str, Any]], way: int) -> list[dict[str, Any]]:
    """Those that none beats in time and value, from fast to slow."""
    edge: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["ms"], -way * p["value"])):
        if not edge or way * point["value"] > way * edge[-1]["value"]:
            edge.append({"ms": point["ms"], "value": point["value"]})
    return edge
