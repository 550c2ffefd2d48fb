"""Profiles side by side: each against the first of its family, with how sure one can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edgegen import bootstrap, gates
from edgegen.bootstrap import Floats
from edgegen.errors import GateError, NotComparableError, UsageError
from edgegen.gates import Gate
from edgegen.metrics import FASTER, NEITHER, SLOWER, Estimate, Ratio, estimates, ratios, resampled
from edgegen.profile import Profile, rate, samples

SCHEMA_VERSION = 1
OPTION = {"batch": "--batch", "seed": "--seed", "prompt_tokens": "--prompt-tokens"}
OPTION |= {"new_tokens": "--new-tokens"}


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """One profile. `values` and `ratios` are by metric, called as in `gates.METRICS`.

    p50, p90 and p99 are of later tokens for text and of whole runs for the rest. `against` is the
    name of the row that `ratios` divide by; the first of a family has none.
    """

    name: str
    against: str
    bundle: str
    family: str
    precision: str
    engine: str
    engine_version: str
    device: str
    device_name: str
    threads: int
    repeats: int
    samples: int
    rate_unit: str
    values: dict[str, Estimate]
    ratios: dict[str, Ratio]
    flags: tuple[str, ...] = ()


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


class Comparison(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows in the order given, one family after the other; `notes` say what to keep in mind."""

    schema_version: int
    rows: tuple[Row, ...]
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()


def compare(profiles: Sequence[Profile], wanted: Iterable[str] = ()) -> Comparison:
    """Each profile against the first of its family; `wanted` are gates as text.

    A missed gate is in the result; `require` raises for it.

    Raises:
        UsageError: no profiles, a gate that is not understood or that a profile has no number for.
        NotComparableError: profiles of one family were taken on different requests.
    """
    if not profiles:
        raise UsageError("no profiles to compare", "give at least one profile's JSON file")
    parsed = [gates.parse(text) for text in wanted]
    names = _names(profiles)
    drawn = [resampled(profile, n) for n, profile in enumerate(profiles)]
    families: dict[str, list[int]] = {}
    for n, profile in enumerate(profiles):
        families.setdefault(profile.family, []).append(n)
    rows: list[Row] = []
    for members in families.values():
        base = members[0]
        for n in members:
            _check_alike(profiles[base], names[base], profiles[n], names[n])
            rows.append(_row(profiles, names, drawn, n, base))
    results = [_try(gate, row) for gate in parsed for row in _gated(rows, gate)]
    return Comparison(SCHEMA_VERSION, tuple(rows), tuple(results), _notes(profiles, families))


def require(comparison: Comparison) -> None:
    """Raise `GateError`, naming each, when a gate was missed."""
    missed = [result for result in comparison.gates if not result.met]
    if missed:
        listed = "; ".join(f"{r.gate} by {r.row} ({describe(r)})" for r in missed)
        raise GateError(f"{len(missed)} of {len(comparison.gates)} gates missed: {listed}")


def describe(result: GateResult) -> str:
    """+7.1 % [+5.2, +9.0], or 21.3 ms [20.9, 21.8]; with a word where it is not sure."""
    gate = gates.parse(result.gate)
    times, form = (100, "+.1f") if gate.relative else (1, ".4g")
    text = f"{result.value * times:{form}} {gate.unit}".rstrip()
    if result.low is not None and result.high is not None:
        text += f" [{result.low * times:{form}}, {result.high * times:{form}}]"
    return text if result.sure else f"{text}, not sure: the interval holds the bound"


def _names(profiles: Sequence[Profile]) -> list[str]:
    """Names that tell them apart: bundle, engine, device; where needed precision and a number."""
    names = [profile.name() for profile in profiles]
    for n, profile in enumerate(profiles):
        if profile.precision and profile.precision not in names[n]:
            names[n] = f"{profile.bundle} {profile.precision} {profile.engine} {profile.device}"
    seen: Counter[str] = Counter()
    for n, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[n] = f"{name} #{seen[name]}"
    return names


def _check_alike(one: Profile, one_name: str, other: Profile, other_name: str) -> None:
    """Raise `NotComparableError` naming the first field of the requests that differs."""
    a, b = _flat(one.request), _flat(other.request)
    for field in [*a, *(set(b) - set(a))]:
        if a.get(field) != b.get(field):
            key, _, name = field.partition(".")
            option = f"--size {name}=N" if key == "sizes" else OPTION.get(key, "")
            fix = f"the same {option}" if option else f"one request.{field}"
            raise NotComparableError(
                f"{other_name} ran {field}={b.get(field, 'unset')}, "
                f"{one_name} ran {field}={a.get(field, 'unset')}",
                f"profile both with {fix}",
            )


def _flat(request: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(request).items():
        if isinstance(value, dict):
            fields |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            fields[key] = value
    return fields


def _row(
    profiles: Sequence[Profile],
    names: Sequence[str],
    drawn: Sequence[dict[str, Floats]],
    n: int,
    base: int,
) -> Row:
    profile, first = profiles[n], profiles[base]
    return Row(
        name=names[n],
        against=names[base] if n != base else "",
        bundle=profile.bundle,
        family=profile.family,
        precision=profile.precision,
        engine=profile.engine,
        engine_version=profile.engine_version,
        device=profile.device,
        device_name=profile.device_name,
        threads=profile.threads,
        repeats=profile.repeats,
        samples=len(samples(profile)),
        rate_unit=rate(profile)[1],
        values=estimates(profile, drawn[n]),
        ratios=ratios(first, drawn[base], profile, drawn[n]) if n != base else {},
        flags=profile.flags,
    )


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
        have = ", ".join(row.ratios if gate.relative else row.values)
        raise UsageError(f"gate {gate.text!r}: {row.name} has no {gate.metric}", f"have: {have}")
    less = 1 if gate.relative else 0
    low, high = (None if end is None else end - less for end in (found.low, found.high))
    met = gate.met(found.value - less)
    sure = all(gate.met(end) == met for end in (low, high) if end is not None)
    if isinstance(found, Estimate):
        sure = sure and found.valid
    return GateResult(gate.text, row.name, found.value - less, low, high, met, sure)


def _notes(profiles: Sequence[Profile], families: dict[str, list[int]]) -> tuple[str, ...]:
    notes = []
    if len(families) > 1:
        notes.append(f"{', '.join(families)}: each family is compared with its own first profile")
    for members in families.values():
        base = profiles[members[0]]
        others = [profiles[n] for n in members[1:]]
        if any(not bootstrap.paired(base, other) for other in others):
            notes.append(
                f"{base.family}: not measured in turns, so differences between processes and "
                "minutes are not in the intervals; better: edgegen profile A B -o FOLDER"
            )
        for field in ("threads", "warmup"):
            values = {getattr(profiles[n], field) for n in members}
            if len(values) > 1:
                notes.append(f"{base.family}: {field} differ: {sorted(values)}")
    return tuple(notes)


def headline(row: Row, metric: str = "p50") -> str:
    """How a row differs, in words: "1.80x faster (1.70 to 1.90)"; empty for the first."""
    ratio = row.ratios.get(metric)
    if ratio is None or ratio.low is None or ratio.high is None:
        return ratio.verdict if ratio else ""
    if ratio.verdict == FASTER:
        return f"{1 / ratio.value:.2f}x faster ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
    if ratio.verdict == SLOWER:
        return f"{ratio.value:.2f}x slower ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{NEITHER} ({ratio.low:.2f} to {ratio.high:.2f})"


def families(comparison: Comparison) -> dict[str, list[Row]]:
    """The rows by family, in order."""
    found: dict[str, list[Row]] = {}
    for row in comparison.rows:
        found.setdefault(row.family, []).append(row)
    return found
