"""Gates: what a comparison must hold to, as text. `p50<=+5%`, `ttft<=80ms`, `rate>=-10%`.

METRIC <= BOUND  or  METRIC >= BOUND
BOUND  a signed percentage of the first profile (+5%, -10%), or a number with its unit
METRIC one of `METRICS` (`rss` for peak_rss), or quality.NAME
"""

from __future__ import annotations

import re

from msgspec import Struct

from edgegen.errors import UsageError
from edgegen.rooms import nearest

# What a metric is counted in.
METRICS = {
    "p50": "ms",
    "p90": "ms",
    "p99": "ms",
    "ttft": "ms",
    "tpot": "ms",
    "load": "ms",
    "cold": "ms",
    "rate": "/s",
    "peak_rss": "MB",
    "size": "MB",
    "energy": "J",
}
SHORT = {"rss": "peak_rss"}
# Other units one may write, in those above.
UNITS = {
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "MB": {"kB": 1e-3, "KB": 1e-3, "MB": 1.0, "GB": 1e3},
    "J": {"mJ": 1e-3, "J": 1.0},
    "/s": {"": 1.0, "/s": 1.0, "tokens/s": 1.0, "images/s": 1.0, "runs/s": 1.0},
    "": {"": 1.0},
}
SYNTAX = "METRIC<=+5%, METRIC<=20ms or METRIC>=-10%, in quotes: --gate 'p50<=+5%'"
_GATE = re.compile(r"\s*([\w.\-]+)\s*(<=|>=)\s*([+-]?)(\d+(?:\.\d+)?)\s*(%|[A-Za-z/]*)\s*")


class Gate(Struct, frozen=True, forbid_unknown_fields=True):
    """One gate. `bound` is a share of the first profile (0.05 for +5 %) or counts `unit`."""

    text: str
    metric: str
    upper: bool
    bound: float
    relative: bool
    unit: str

    def met(self, value: float) -> bool:
        """Does `value`, in the terms of `bound`, hold to it?"""
        return value <= self.bound if self.upper else value >= self.bound


def parse(text: str, what: str = "gate") -> Gate:
    """The gate that `text` says; errors call it `what`.

    Raises:
        UsageError: not the syntax, which is shown; an unknown metric ("did you mean") or unit.
    """
    found = _GATE.fullmatch(text)
    if not found:
        raise UsageError(f"{what} {text!r} is not understood", f"write {SYNTAX}")
    written, sign, signum, number, unit = found.groups()
    metric = SHORT.get(written, written)
    if metric not in METRICS and not metric.startswith("quality."):
        hint = nearest(metric, [*METRICS, "quality.NAME"])
        raise UsageError(f"{what} {text!r}: no metric {metric!r}", hint)
    upper, value = sign == "<=", float(f"{signum}{number}")
    counted = METRICS.get(metric, "")
    if unit == "%":
        if not signum:
            wanted = f"{metric}{sign}+{number}%"
            raise UsageError(
                f"{what} {text!r}: more or less than the first profile?",
                f"give the percentage a sign: '{wanted}'",
            )
        return Gate(text, metric, upper, value / 100, relative=True, unit="%")
    if unit not in UNITS[counted]:
        units = ", ".join(u for u in UNITS[counted] if u) or "no unit"
        raise UsageError(
            f"{what} {text!r}: {metric} is not in {unit or 'no unit'}", f"have: {units}"
        )
    return Gate(text, metric, upper, value * UNITS[counted][unit], relative=False, unit=counted)
