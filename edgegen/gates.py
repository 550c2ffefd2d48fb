"""Gates: what a comparison must hold to, as text. `p50<=+5%`, `ttft<=80ms`, `rate>=-10%`.

METRIC <= BOUND  or  METRIC >= BOUND
BOUND  a signed percentage of the first profile (+5%, -10%), or a number with its unit
METRIC one of `METRICS` (`rss` for peak_rss), or quality.NAME
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from edgegen.errors import UsageError
from edgegen.profile import SAMPLES_FOR
from edgegen.rooms import nearest

if TYPE_CHECKING:
    from edgegen.compare import Row
    from edgegen.metrics import Estimate, Ratio

SAMPLES = {"p90": 90, "p99": 99}  # the percentiles that a gate may only use of enough samples

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


class GateResult(Struct, frozen=True, forbid_unknown_fields=True):
    """How one row did at one gate, in the gate's terms: shares for a percentage, else its unit.

    `sure` is false where the 95 % interval, `low` to `high`, holds the bound.
    """

    gate: str
    row: str
    value: float
    low: float | None
    high: float | None
    met: bool
    sure: bool


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
        wrong = f"is not in {unit}" if unit else "without a unit"
        raise UsageError(f"{what} {text!r}: {metric} {wrong}", f"have: {units}")
    return Gate(text, metric, upper, value * UNITS[counted][unit], relative=False, unit=counted)


def hold(gate: Gate, rows: Sequence[Row]) -> list[GateResult]:
    """How each of the rows that a gate is for does at it.

    Raises:
        UsageError: there is no such row, or one without a valid figure.
    """
    return [_try(gate, row) for row in _gated(rows, gate)]


def _gated(rows: Sequence[Row], gate: Gate) -> list[Row]:
    """The rows a gate is for: those that are compared; a lone profile at a gate with a unit."""
    compared = [row for row in rows if row.against]
    if compared or (not gate.relative and len(rows) == 1):
        return compared or list(rows)
    raise UsageError(
        f"gate {gate.text!r}: there is nothing to compare with",
        "give a second profile of the same family, or a gate with a unit",
    )


def _try(gate: Gate, row: Row) -> GateResult:
    found: Estimate | Ratio | None = (row.ratios if gate.relative else row.values).get(gate.metric)
    if found is None:
        raise _unknown(gate, row)
    if gate.metric in SAMPLES and not row.values[gate.metric].valid:
        needed = SAMPLES_FOR[SAMPLES[gate.metric]]
        raise UsageError(
            f"gate {gate.text!r}: {gate.metric} needs {needed} samples, {row.name} has "
            f"{row.samples}",
            f"profile with --repeats {needed}, or set the gate on p50",
        )
    less = 1 if gate.relative else 0
    low, high = (None if end is None else end - less for end in (found.low, found.high))
    met = gate.met(found.value - less)
    sure = all(gate.met(end) == met for end in (low, high) if end is not None)
    return GateResult(gate.text, row.name, found.value - less, low, high, met, sure)


def _unknown(gate: Gate, row: Row) -> UsageError:
    """Why a row has no figure for a gate."""
    what = f"gate {gate.text!r}: {row.name}"
    if gate.relative and gate.metric in row.values:
        return UsageError(
            f"{what} has {gate.metric}, but the first has none above zero that is like it",
            f"a percentage needs one: give a number, as '{gate.metric}<=1'",
        )
    if gate.metric.startswith("quality."):
        store = f"edgegen eval {row.bundle} --data DATA --save; then profile again"
        return UsageError(f"{what} has no {gate.metric}", f"run: {store}")
    have = ", ".join(row.ratios if gate.relative else row.values)
    return UsageError(f"{what} has no {gate.metric}", f"have: {have}")
