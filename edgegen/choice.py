"""Which of several to take: the Pareto front, and the best that fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from edgegen import gates
from edgegen.errors import UsageError
from edgegen.gates import Gate
from edgegen.metrics import Estimate, Ratio, better

if TYPE_CHECKING:
    from edgegen.compare import Row

# One figure of quality is enough for the front: with all of them nearly everything lies on it.
QUALITY = ("kid", "fid", "perplexity", "bits_per_byte", "elbo", "bleu", "psnr", "accuracy")
COSTS = ("p50", "ttft", "peak_rss", "size", "energy")
ONCE = {"peak_rss": 0.05, "energy": 0.05}  # read once, without a spread: less apart is alike
SYNTAX = "METRIC<=BOUND, by commas: --best 'p50<=20ms, rss<=200MB'"

Values = Mapping[str, Estimate]


class Excluded(Struct, frozen=True, forbid_unknown_fields=True):
    """A row that was not taken: by which constraints, or as it is no faster than the pick."""

    row: str
    why: str


class Best(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to a budget; `row` is empty where nothing fits, and `nearest` says what nearly."""

    budget: str
    row: str
    bundle: str
    precision: str
    engine: str
    device: str
    why: str
    excluded: tuple[Excluded, ...] = ()
    nearest: str = ""


def objectives(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the front is drawn over: the costs that every row has, and one figure of quality."""
    common = [m for m in rows[0].values if all(m in row.values for row in rows)]
    costs = [m for m in COSTS if m in common]
    if len({row.energy_source for row in rows}) > 1 and "energy" in costs:
        costs.remove("energy")  # a modelled joule is not a measured one
    known = [m for m in common if m.startswith("quality.") and better(m)]
    for name in QUALITY:
        found = [m for m in known if m.removeprefix("quality.").startswith(name)]
        if found:
            return (*costs, found[0])
    return tuple(costs + known[:1])


def beaten_by(rows: Sequence[Row], over: Sequence[str]) -> list[str]:
    """For each row the first that beats it, or "" for a row on the Pareto front.

    One beats another where it is as good at everything and surely better, its interval apart from
    the other's, at something.
    """
    return [
        next((other.name for other in rows if _beats(other.values, row.values, over)), "")
        for row in rows
    ]


def _beats(one: Values, other: Values, over: Sequence[str]) -> bool:
    as_good = all(better(m) * (one[m].value - other[m].value) >= 0 for m in over)
    return as_good and any(_surely(one[m], other[m], better(m), ONCE.get(m, 0)) for m in over)


def _surely(one: Estimate, other: Estimate, way: int, apart: float) -> bool:
    """Is `one` better for sure? `way` is 1 where more is better and -1 where less is."""
    if way < 0:
        one, other = other, one
    low = one.value if one.low is None else one.low
    high = other.value if other.high is None else other.high
    return low > high + apart * abs(high)


def best(text: str, rows: Sequence[Row], alike: Callable[[Row, Row], bool]) -> Best:
    """The fastest row that fits the budget `text`; of those as fast, the one with least memory.

    `alike` says of two rows that no difference in time between them is detectable.

    Raises:
        UsageError: a budget that is not understood, or a metric that no row has.
    """
    budget = parse(text)
    for gate in budget:
        _known(gate, rows)
    failed = {row.name: _misses(row, budget) for row in rows}
    fitting = sorted(
        (row for row in rows if not failed[row.name]), key=lambda row: row.values["p50"].value
    )
    excluded = [Excluded(row.name, "; ".join(why)) for row in rows if (why := failed[row.name])]
    if not fitting:
        return Best(
            text, "", "", "", "", "", "nothing fits", tuple(excluded), _nearest(budget, rows)
        )
    fastest = fitting[0]
    tied = [row for row in fitting if row is fastest or alike(fastest, row)]
    pick = min(tied, key=_weight)
    excluded += [Excluded(r.name, _why_not(r, pick, tied)) for r in fitting if r is not pick]
    reason = _why(pick, budget, len(fitting), len(tied))
    return Best(
        text,
        pick.name,
        pick.bundle,
        pick.precision,
        pick.engine,
        f"{pick.board}/{pick.device}" if pick.board else pick.device,
        reason,
        tuple(excluded),
    )


def parse(text: str) -> list[Gate]:
    """The constraints of a budget.

    Raises:
        UsageError: none, or one that is not understood.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"--best {text!r} is not understood", f"write {SYNTAX}")
    return [gates.parse(part, "--best") for part in parts]


def _figures(row: Row, gate: Gate) -> Estimate | Ratio | None:
    if not gate.relative:
        return row.values.get(gate.metric)
    if not row.against and gate.metric in row.values:
        return Ratio(1.0)  # the first itself
    return row.ratios.get(gate.metric)


def _known(gate: Gate, rows: Sequence[Row]) -> None:
    if not any(gate.metric in row.values for row in rows):
        have = dict.fromkeys(metric for row in rows for metric in row.values)
        raise UsageError(
            f"--best {gate.text!r}: no profile has {gate.metric}", f"have: {', '.join(have)}"
        )


def _misses(row: Row, budget: Sequence[Gate]) -> list[str]:
    """A line for each constraint that the row does not hold to."""
    found = []
    for gate in budget:
        figure = _figures(row, gate)
        if figure is None:
            found.append(f"{gate.metric} is not known")
        elif isinstance(figure, Estimate) and not figure.valid:
            found.append(f"{gate.metric} has too few samples")
        elif not gate.met(figure.value - gate.relative):
            found.append(f"{_said(figure, gate)} misses {gate.text}")
    return found


def _said(figure: Estimate | Ratio, gate: Gate) -> str:
    """p50 21.3 ms, or p50 +7.1 %."""
    if gate.relative:
        return f"{gate.metric} {figure.value - 1:+.1%}"
    return f"{gate.metric} {figure.value:.4g} {gate.unit}".rstrip()


def _weight(row: Row) -> tuple[float, float]:
    memory, size = row.values.get("peak_rss"), row.values["size"]
    return (memory.value if memory else size.value), size.value


def _why(pick: Row, budget: Sequence[Gate], fitting: int, tied: int) -> str:
    held = [
        f"{_said(figure, gate)} holds to {gate.text}{_doubt(figure, gate)}"
        for gate in budget
        if (figure := _figures(pick, gate))
    ]
    if fitting == 1:
        place = "the only one that fits"
    elif tied == 1:
        place = f"the fastest of {fitting} that fit"
    else:
        place = f"the least memory of {tied} that are as fast as the fastest, of {fitting} that fit"
    return f"{place}: {', '.join(held)}"


def _doubt(figure: Estimate | Ratio, gate: Gate) -> str:
    ends = (figure.low, figure.high)
    sure = all(gate.met(end - gate.relative) for end in ends if end is not None)
    return "" if sure else " (not sure: the interval holds the bound)"


def _why_not(row: Row, pick: Row, tied: Sequence[Row]) -> str:
    if row in tied:
        return "fits and is as fast, but takes no less memory"
    more = row.values["p50"].value / pick.values["p50"].value - 1
    return f"fits, but is slower: p50 {more:+.1%}"


def _nearest(budget: Sequence[Gate], rows: Sequence[Row]) -> str:
    """The row that misses its worst constraint by the smallest share, and by how much."""

    def worst(row: Row) -> float:
        return max(_excess(_figures(row, gate), gate) for gate in budget)

    row = min(rows, key=worst)
    over = worst(row)
    return f"{row.name}, {over:.0%} off" if over < 10 else ""


def _excess(figure: Estimate | Ratio | None, gate: Gate) -> float:
    """By what share of the bound a figure misses it; 0 where it holds."""
    if figure is None:
        return float("inf")
    bound = gate.bound + gate.relative
    away = (figure.value - bound) * (1 if gate.upper else -1)
    return max(away / abs(bound), 0.0) if bound else float("inf") * (away > 0) if away else 0.0
