"""How near each run came to what its device can do: rooflines, on logarithms both ways.

Source: Williams, Waterman, Patterson 2009, CACM 52 (4), "Roofline".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair

from edgegen.charts import look
from edgegen.charts.look import Figure, Span
from edgegen.compare import Row
from edgegen.roofs import Peaks, Roof, Roofline
from edgegen.rooftables import threads
from edgegen.tables import number

# Where the name of a roof stands: of memory over its bend, of arithmetic at its end.
SIDES: dict[str, dict[str, Any]] = {
    "bend": {"align": "center", "baseline": "bottom", "dy": -3},
    "over": {"align": "right", "baseline": "bottom", "dy": -3},
    "under": {"align": "right", "baseline": "top", "dy": 4},
}


def figures(rows: Sequence[Row], found: Mapping[str, Roofline]) -> list[Figure]:
    """A chart for each device and number of threads that peaks were measured of."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, one in found.items():
        groups.setdefault((one.peaks.device_name, one.peaks.threads), []).append(name)
    return [_figure(rows, {name: found[name] for name in names}) for names in groups.values()]


def _figure(rows: Sequence[Row], found: Mapping[str, Roofline]) -> Figure:
    points = [
        point
        for n, row in enumerate(rows)
        if row.name in found
        for point in _points(n, row.name, found[row.name])
    ]
    peaks = next(iter(found.values())).peaks
    wide, high = _spans(points, peaks)
    x = altair.X("x:Q", scale=wide.scale, axis=wide.axis("operations for each byte"))
    y = altair.Y("y:Q", scale=high.scale, axis=high.axis("GFLOP/s"))
    roofs = altair.Chart(look.data(_roofs(peaks, wide, high)))
    base = altair.Chart(look.data(points))
    whole = base.transform_filter("datum.whole")
    tip = [f"{key}:N" for key in ("profile", "part", "reached", "time", "bound")]
    colour = look.by_row(len(rows))
    at = {"x": x, "y": y}
    chart = altair.layer(
        roofs.mark_line(color=look.SOFT, strokeWidth=1.5).encode(**at, detail="roof:N"),
        *(
            roofs.transform_filter(f"datum.label && datum.side == '{side}'")
            .mark_text(fontSize=11, color=look.SOFT, **how)
            .encode(**at, text="label:N")
            for side, how in SIDES.items()
        ),
        base.transform_filter("!datum.whole")
        .mark_circle(opacity=0.5, size=45)
        .encode(**at, color=colour, tooltip=tip),
        whole.mark_point(filled=True, opacity=1, size=150).encode(
            **at, color=colour, shape=_shape(), tooltip=tip
        ),
        whole.mark_text(dy=-15, fontWeight=600).encode(**at, text="label:N"),
    )
    said = "; ".join(
        f"{p['profile']}, {p['part']}: {p['reached']}, {p['bound']}" for p in points if p["whole"]
    )
    return look.figure(
        chart,
        height=320,
        alt=f"Roofline of {peaks.device_name}. {said}",
        caption=f"{peaks.device_name}, {threads(peaks)}. Higher is more arithmetic a "
        "second, further right more of it for each byte moved. The lines are the most that was "
        f"measured here: {_listed(peaks)}. Large marks are whole runs (of a text: each token; "
        "squares: reading the prompt); small ones are operators. Far below the lines is overhead.",
    )


def _shape() -> Any:
    scale = altair.Scale(domain=["prefill", "decode", "run"], range=["square", "circle", "circle"])
    return altair.Shape("part:N", scale=scale, legend=None)


def _listed(peaks: Peaks) -> str:
    arithmetic = ", ".join(f"{p.precision} {number(p.gflops)}" for p in peaks.peaks)
    memory = ", ".join(f"{b.level} {number(b.gb_s)}" for b in peaks.bandwidths)
    return f"{arithmetic} GFLOP/s; {memory} GB/s"


def _points(n: int, name: str, found: Roofline) -> list[dict[str, Any]]:
    """Phases and operators that calculate anything."""
    parts = [(part, True) for part in found.phases] + [(part, False) for part in found.operators]
    return [
        {
            "n": n,
            "profile": name,
            "part": part.name,
            "label": str(n + 1),
            "whole": whole,
            "x": look.short(part.flops / part.bytes),
            "y": look.short(_gflops(part)),
            "reached": f"{number(_gflops(part))} GFLOP/s, {part.of_roof:.0%} of the roof",
            "time": f"{number(part.ms)} ms, {number(part.roof_ms)} ms at the roof",
            "bound": f"bound by {part.bound}",
        }
        for part, whole in parts
        if part.flops > 0 and part.bytes > 0 and part.ms > 0
    ]


def _gflops(part: Roof) -> float:
    return part.flops / part.ms / 1e6


def _spans(points: Sequence[dict[str, Any]], peaks: Peaks) -> tuple[Span, Span]:
    """Room for every mark, for every roof, and for where the roofs meet."""
    most = max(peak.gflops for peak in peaks.peaks)
    meet = [most / bandwidth.gb_s for bandwidth in peaks.bandwidths]
    xs = [point["x"] for point in points] + meet
    ys = [point["y"] for point in points] + [peak.gflops for peak in peaks.peaks]
    return Span(min(xs) / 4, max(xs) * 4, True), Span(min(ys) / 3, max(ys) * 2, True)


def _roofs(peaks: Peaks, wide: Span, high: Span) -> list[dict[str, Any]]:
    """Both ends of each line, its name at the one where there is room."""
    most, least = (end(peak.gflops for peak in peaks.peaks) for end in (max, min))
    fastest = max(bandwidth.gb_s for bandwidth in peaks.bandwidths)
    ends: list[tuple[str, str, float, float, str]] = []
    for bandwidth in peaks.bandwidths:
        name, start = bandwidth.level, max(wide.low, high.low / bandwidth.gb_s)
        ends.append((name, "bend", start, start * bandwidth.gb_s, ""))
        ends.append((name, "bend", most / bandwidth.gb_s, most, name))
    for peak in peaks.peaks:
        name, side = peak.precision, "under" if least == peak.gflops < most else "over"
        ends.append((name, side, peak.gflops / fastest, peak.gflops, ""))
        ends.append((name, side, wide.high, peak.gflops, name))
    return [
        {"roof": roof, "side": side, "x": look.short(x), "y": look.short(y), "label": label}
        for roof, side, x, y, label in ends
    ]
