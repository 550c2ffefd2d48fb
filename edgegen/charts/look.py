"""How the charts look: the page's own colours, so that one picture is right by day and by night.

Vega writes SVG whose colours are whatever text the chart says. Said is a CSS variable, and the page
decides what that is: nothing is drawn again when the theme changes, and nothing flashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair
import numpy as np

from edgegen.bootstrap import Floats

COLOURS = 8  # --c0 .. --c7 for profiles, --k0 .. --k7 for kinds of operators
INK, SOFT, LINE, CARD = (f"var(--{name})" for name in ("ink", "soft", "line", "card"))
GOOD, BAD = "var(--good)", "var(--bad)"
ROW = 54  # pixels of height a profile
LABEL_AT = -0.32  # of a line's height, above its middle
LOG_FROM = 5  # times the least: from here on an axis is logarithmic
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
CONFIG = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "labelFlush": True,
    },
    "text": {"color": INK, "fontSize": 12.5},
    "rule": {"color": SOFT},
}


class Figure(NamedTuple):
    """A chart as a Vega-Lite specification, and what stands under it."""

    spec: dict[str, Any]
    caption: str


class Span(NamedTuple):
    """Where an axis runs from and to, and whether by powers."""

    low: float
    high: float
    log: bool

    @property
    def scale(self) -> Any:
        ends = [self.low, self.high]
        if self.log:
            return altair.Scale(type="log", domain=ends, nice=False)
        return altair.Scale(domain=ends, nice=False, zero=False)

    def share(self, value: float) -> float:
        """How far along the axis `value` lies, 0 at its beginning and 1 at its end."""
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        """The value that lies there."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def axis(self, title: str, **more: Any) -> Any:
        """Ticks at 1, 2, 5, 10 where it is logarithmic; about five even ones where it is not."""
        if not self.log:
            return altair.Axis(title=title, tickCount=5, format=",~r", **more)
        few = self.high < LOG_FROM * self.low  # by powers all the same, as ratios are
        values = _even(self) if few else _decades(self)
        return altair.Axis(title=title, values=values, format=",~r", **more)


def span(values: Sequence[float] | Floats, *, zero: bool = False) -> Span:
    """An axis that holds all of `values` and a little more; `zero` begins a linear one there."""
    low, high = float(min(values)), float(max(values))
    if low > 0 and high >= LOG_FROM * low:
        return Span(low / 1.2, high * 1.2, True)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    floor = 0.0 if zero or 0 <= low < margin else low - margin
    return Span(floor, high + margin, False)


def _decades(found: Span) -> list[float]:
    powers = range(int(np.floor(np.log10(found.low))), int(np.ceil(np.log10(found.high))) + 1)
    steps = (1,) if found.high > 200 * found.low else (1, 2, 5)
    marks = (float(f"{step}e{power}") for power in powers for step in steps)
    return [mark for mark in marks if found.low <= mark <= found.high]


def _even(found: Span) -> list[float]:
    """Five or so round values."""
    rough = (found.high - found.low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = np.ceil(found.low / step), np.floor(found.high / step)
    return [round(float(n * step), 9) for n in np.arange(first, last + 1)]


def middling(count: int) -> int:
    """The height of a chart that all profiles share: that of their lines where these are few."""
    return min(max(180, ROW * count), 320)


def lines(count: int) -> Any:
    """A line for each of `count`, the first at the top; no axis, for names stand in the picture."""
    scale = altair.Scale(domain=[count - 0.65, -0.62], nice=False, zero=False)
    return altair.Y("y:Q", scale=scale, axis=None)


def data(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows inside the chart itself."""
    return altair.InlineData(values=list(rows))


def short(value: float) -> float:
    """Four digits that count: what the eye sees of a mark, and a third of the file's size."""
    return float(f"{value:.4g}")


def by_row(count: int) -> Any:
    """The colour of each profile, from the field `n`."""
    shades = [f"var(--c{n % COLOURS})" for n in range(count)]
    scale = altair.Scale(domain=list(range(count)), range=shades)
    return altair.Color("n:N", scale=scale, legend=None)


def names(base: Any, field: str, limit: str, right: str = "") -> list[Any]:
    """The text of `field` above its line at the left, of `right` at the right in bold."""
    found = _rimmed(base, field, 0, align="left", limit=altair.expr(limit))
    return found + (_rimmed(base, right, "width", align="right", fontWeight=600) if right else [])


def _rimmed(base: Any, field: str, at: int | str, **kind: Any) -> list[Any]:
    """A text over a wider one in the page's own colour, which keeps lines off it."""
    place = {"x": altair.value(at), "y": altair.Y("label:Q"), "text": f"{field}:N"}
    rim = base.mark_text(baseline="bottom", stroke=CARD, strokeWidth=4, **kind)
    return [rim.encode(**place), base.mark_text(baseline="bottom", **kind).encode(**place)]


def figure(chart: Any, *, height: int, alt: str, caption: str) -> Figure:
    """As wide as its place on the page; `alt` says what it shows to who cannot see it."""
    fitted = chart.properties(
        width="container",
        height=height,
        description=alt,
        autosize=altair.AutoSizeParams(type="fit-x", contains="padding"),
    )
    spec = fitted.configure(**CONFIG).to_dict()
    return Figure(spec, caption)
