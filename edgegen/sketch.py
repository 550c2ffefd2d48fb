"""Raw samples as lines of text: a histogram over a box for each profile, on one axis.

    vae onnxruntime cpu   ▁▃█▇▅▂▁▁      ▁                       n=100
                          ├━━┃━━─┤
                          1.20 ms                      1.71 ms

No colours, so that NO_COLOR and pipes get what a terminal gets; `plain` keeps to ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from edgegen.bootstrap import Floats
from edgegen.metrics import steps_of
from edgegen.profile import Profile
from edgegen.tables import number

NARROWEST = 20  # characters of axis
FENCE = 6  # quartile distances above the upper quartile: what lies beyond is counted, not drawn
LOG_FROM = 5  # times the least: from here on the axis is logarithmic


class Marks(Struct, frozen=True):
    """What is drawn with: eight heights after the empty one; ends, line, box and median."""

    heights: str
    ends: tuple[str, str]
    line: str
    box: str
    middle: str


UNICODE = Marks(" ▁▂▃▄▅▆▇█", ("├", "┤"), "─", "━", "┃")
ASCII = Marks(" .:-=+*#@", ("|", "|"), "-", "=", "#")


class Axis(Struct, frozen=True):
    """From `low` to `high` over `width` characters."""

    low: float
    high: float
    width: int
    log: bool

    def places(self, values: Floats) -> np.ndarray:
        """The character that each value falls on, 0 to width - 1."""
        low, high, at = self.low, self.high, values
        if self.log:
            low, high, at = np.log(low), np.log(high), np.log(values)
        share = (at - low) / ((high - low) or 1)
        places: np.ndarray = np.clip((share * self.width).astype(int), 0, self.width - 1)
        return places


def distribution(profile: Profile, *, width: int = 78, plain: bool = False) -> str:
    """One profile: its runs; of text its time to first token, and to each one after."""
    return distributions([profile], [profile.name()], width=width, plain=plain)


def distributions(
    profiles: Sequence[Profile], names: Sequence[str], *, width: int = 78, plain: bool = False
) -> str:
    """Profiles of one family under each other; ends without a line break."""
    text = any(any(profile.steps_ms) for profile in profiles)
    kinds = {"first": "TTFT", "later": "TPOT"} if text else {"first": "run time"}
    blocks = []
    for which, title in kinds.items():
        samples = [
            np.concatenate([np.asarray(step) for step in steps_of(profile, which)])
            for profile in profiles
        ]
        blocks.append(strips(names, samples, title=title, width=width, plain=plain))
    return "\n".join(blocks)


def strips(
    names: Sequence[str],
    samples: Sequence[Floats],
    *,
    title: str,
    width: int = 78,
    plain: bool = False,
) -> str:
    """A histogram and a box for each of `samples`, in ms: quartiles, median, 5 % to 95 %."""
    marks = ASCII if plain else UNICODE
    shown = [(name, values) for name, values in zip(names, samples, strict=True) if len(values)]
    if not shown:
        return f"{title}: no samples"
    high = max(_fence(values) for _, values in shown)
    counts = [_count(values, high) for _, values in shown]
    room = width - max(map(len, counts)) - 4
    margin = max(min(max(len(name) for name, _ in shown), room - NARROWEST), 1)
    axis = _axis([values for _, values in shown], high, max(room - margin, NARROWEST))
    lines = [title]
    for (name, values), count in zip(shown, counts, strict=True):
        lines.append(f"{_short(name, margin):<{margin}}  {_bars(values, axis, marks)}  {count}")
        lines.append(f"{'':<{margin}}  {_box(values, axis, marks)}".rstrip())
    ends = f"{number(axis.low)} ms", f"{number(axis.high)} ms" + (" (log)" if axis.log else "")
    gap = max(axis.width - len(ends[0]) - len(ends[1]), 1)
    lines.append(f"{'':<{margin}}  {ends[0]}{' ' * gap}{ends[1]}")
    return "\n".join(lines)


def sparkline(values: Sequence[float], *, plain: bool = False) -> str:
    """One character a value, from the least to the most of them."""
    heights = (ASCII if plain else UNICODE).heights[1:]
    x = np.asarray(values, dtype=np.float64)
    span = np.ptp(x) if len(x) else 0.0
    at = (x - x.min()) / span * (len(heights) - 1) if span else np.full(len(x), 3.0)
    return "".join(heights[round(float(n))] for n in at)


def _fence(values: Floats) -> float:
    """The largest value that is drawn."""
    lower, upper = np.percentile(values, [25, 75])
    return float(values[values <= upper + FENCE * (upper - lower)].max())


def _count(values: Floats, high: float) -> str:
    beyond = int((values > high).sum())
    return f"n={len(values)}" + (f", {beyond} beyond" if beyond else "")


def _axis(samples: Sequence[Floats], high: float, width: int) -> Axis:
    low = min(float(values.min()) for values in samples)
    return Axis(low, high, width, low > 0 and high > LOG_FROM * low)


def _bars(values: Floats, axis: Axis, marks: Marks) -> str:
    inside = values[values <= axis.high]
    counts = np.bincount(axis.places(inside), minlength=axis.width)
    steps = len(marks.heights) - 1
    # Whatever is there at all is seen: the lowest mark stands for one.
    heights = np.ceil(counts / max(counts.max(), 1) * steps).astype(int)
    return "".join(marks.heights[n] for n in heights)


def _box(values: Floats, axis: Axis, marks: Marks) -> str:
    at = axis.places(np.percentile(values, [5, 25, 50, 75, 95]))
    low, lower, middle, upper, high = (int(n) for n in at)
    line = [" "] * axis.width
    line[low : high + 1] = marks.line * (high + 1 - low)
    line[low], line[high] = marks.ends
    line[lower : upper + 1] = marks.box * (upper + 1 - lower)
    line[middle] = marks.middle
    return "".join(line)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}~"
