"""Profiles side by side: each against the first of its family, with how sure one can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edgegen import bootstrap, choice, gates, noise, validity
from edgegen.bootstrap import Floats
from edgegen.bundle import Drift, worst
from edgegen.choice import Best
from edgegen.errors import GateError, NotComparableError, UsageError
from edgegen.gates import GateResult
from edgegen.metrics import NEITHER, TOO_FEW, Estimate, Ratio, between, estimates, ratios, resampled
from edgegen.noise import Noise
from edgegen.profile import Profile, rate, samples
from edgegen.verdict import verdict

SCHEMA_VERSION = 1
OPTION = {"batch": "--batch", "seed": "--seed", "prompt_tokens": "--prompt-tokens"}
OPTION |= {"new_tokens": "--new-tokens"}


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """One profile. `values` and `ratios` are by metric, called as in `gates.METRICS`.

    p50, p90 and p99 are of later tokens for text and of whole runs for the rest. `against` is the
    name of the row that `ratios` divide by; the first of a family has none. `slope` is how much
    slower its runs became from the first to the last, as a share of the median, `drift` the output
    furthest from torch (None where it was not verified). `beaten_by` is the row that is as good at
    everything and surely better at something; empty on the Pareto front.
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
    board: str = ""
    created: str = ""
    energy_source: str = ""
    slope: float = 0.0
    drift: Drift | None = None
    beaten_by: str = ""


class Comparison(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows in the order given, one family after the other; `notes` say what to keep in mind.

    By family: `verdicts`, one sentence each, and `fronts`, the metrics that its Pareto front is
    drawn over (empty for a single row). `best` answers a budget, where one was given.
    """

    schema_version: int
    rows: tuple[Row, ...]
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()
    verdicts: dict[str, str] = {}
    fronts: dict[str, tuple[str, ...]] = {}
    noise: tuple[Noise, ...] = ()
    best: Best | None = None


def compare(
    profiles: Sequence[Profile], wanted: Iterable[str] = (), budget: str = ""
) -> Comparison:
    """Each profile against the first of its family; `wanted` are gates as text.

    `budget` asks which one to take: see `choice.best`. A missed gate and a budget that nothing fits
    are in the result; `require` raises for them.

    Raises:
        UsageError: no profiles, a gate or budget that is not understood or that a profile has no
            number for, a budget for several families.
        NotComparableError: profiles of one family were taken on different requests.
    """
    if not profiles:
        raise UsageError("no profiles to compare", "give at least one profile's JSON file")
    parsed = [gates.parse(text) for text in wanted]
    if budget:
        choice.parse(budget)
    names = _names(profiles)
    drawn = [resampled(profile, n) for n, profile in enumerate(profiles)]
    by_family: dict[str, list[int]] = {}
    for n, profile in enumerate(profiles):
        by_family.setdefault(profile.family, []).append(n)
    rows: list[Row] = []
    fronts: dict[str, tuple[str, ...]] = {}
    for family, members in by_family.items():
        base = members[0]
        for n in members[1:]:
            _check_alike(profiles[base], names[base], profiles[n], names[n])
        mine = [_row(profiles, names, drawn, n, base) for n in members]
        fronts[family] = choice.objectives(mine) if len(mine) > 1 else ()
        rows += _marked(mine, fronts[family])
    floors = [
        noise.floor([profiles[n] for n in members], [names[n] for n in members])
        for members in by_family.values()
    ]
    results = [result for gate in parsed for result in gates.hold(gate, rows)]
    notes = _notes(profiles, by_family)
    found = Comparison(SCHEMA_VERSION, tuple(rows), tuple(results), notes)
    return msgspec.structs.replace(
        found,
        verdicts={family: verdict(mine) for family, mine in families(found).items()},
        fronts=fronts,
        noise=tuple(floor for floor in floors if floor),
        best=_best(budget, rows, dict(zip(names, profiles, strict=True))) if budget else None,
    )


def _marked(rows: Sequence[Row], over: Sequence[str]) -> list[Row]:
    """The rows of one family, each with what beats it."""
    beaten = choice.beaten_by(rows, over) if over else [""] * len(rows)
    return [
        msgspec.structs.replace(row, beaten_by=by) for row, by in zip(rows, beaten, strict=True)
    ]


def _best(budget: str, rows: Sequence[Row], profiles: dict[str, Profile]) -> Best:
    kinds = list(dict.fromkeys(row.family for row in rows))
    if len(kinds) > 1:
        raise UsageError(
            f"--best chooses among profiles of one family, these are {', '.join(kinds)}",
            f"give those of {kinds[0]} alone",
        )

    def alike(one: Row, other: Row) -> bool:
        a, b = profiles[one.name], profiles[other.name]
        if bootstrap.paired(a, b):
            return between(a, b).verdict in (NEITHER, TOO_FEW)
        mine, theirs = one.values["p50"], other.values["p50"]
        if mine.low is None or mine.high is None or theirs.low is None or theirs.high is None:
            return mine.value == theirs.value
        return mine.low <= theirs.high and theirs.low <= mine.high

    return choice.best(budget, rows, alike)


def require(comparison: Comparison) -> None:
    """Raise `GateError`, naming each, when a gate was missed or nothing fits the budget."""
    missed = [result for result in comparison.gates if not result.met]
    if missed:
        listed = "; ".join(f"{r.gate} by {r.row} ({describe(r)})" for r in missed)
        raise GateError(f"{len(missed)} of {len(comparison.gates)} gates missed: {listed}")
    best = comparison.best
    if best and not best.row:
        listed = "; ".join(f"{one.row}: {one.why}" for one in best.excluded)
        hint = f"the nearest is {best.nearest}" if best.nearest else ""
        raise GateError(f"nothing fits {best.budget!r}: {listed}", hint)


def describe(result: GateResult) -> str:
    """+7.1 % [+5.2, +9.0], or 21.3 ms [20.9, 21.8]; with a word where it is not sure."""
    gate = gates.parse(result.gate)
    times, form = (100, "+.1f") if gate.relative else (1, ".4g")
    text = f"{result.value * times:{form}} {gate.unit}".rstrip()
    if result.low is not None and result.high is not None:
        text += f" [{result.low * times:{form}}, {result.high * times:{form}}]"
    return text if result.sure else f"{text}, not sure: the interval holds the bound"


def _names(profiles: Sequence[Profile]) -> list[str]:
    """Names that tell them apart: bundle, engine, device; precision, host, number where needed."""
    names = [profile.name() for profile in profiles]
    for n, profile in enumerate(profiles):
        if profile.precision and profile.precision not in names[n]:
            names[n] = f"{profile.bundle} {profile.precision}{names[n][len(profile.bundle) :]}"
    hosts: dict[str, set[str]] = {}
    for name, profile in zip(names, profiles, strict=True):
        hosts.setdefault(name, set()).add(profile.device_name)
    for n, profile in enumerate(profiles):
        if len(hosts[names[n]]) > 1:
            names[n] = f"{names[n]} ({profile.device_name})"
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
        board=profile.board,
        created=profile.created,
        energy_source=profile.energy_source if profile.energy_j is not None else "",
        slope=validity.slope(profile)[0],
        drift=worst(profile.drifts) if profile.drifts else None,
    )


def _notes(profiles: Sequence[Profile], families: dict[str, list[int]]) -> tuple[str, ...]:
    notes = []
    if len(families) > 1:
        notes.append(f"{', '.join(families)}: each family is compared with its own first profile")
    for members in families.values():
        base = profiles[members[0]]
        mine = [profiles[n] for n in members]
        if any(not bootstrap.paired(base, other) for other in mine[1:]):
            notes.append(
                f"{base.family}: not measured in turns, so differences between processes and "
                "minutes are not in the intervals; better: edgegen profile A B -o FOLDER"
            )
        for field in ("threads", "warmup"):
            values = {getattr(profile, field) for profile in mine}
            if len(values) > 1:
                notes.append(f"{base.family}: {field} differ: {sorted(values)}")
        sources = {p.energy_source for p in mine if p.energy_j is not None}
        if len(sources) > 1:
            listed = ", ".join(sorted(sources))
            notes.append(f"{base.family}: energy is not alike: {listed}; not compared")
    return tuple(notes)


def families(comparison: Comparison) -> dict[str, list[Row]]:
    """The rows by family, in order."""
    found: dict[str, list[Row]] = {}
    for row in comparison.rows:
        found.setdefault(row.family, []).append(row)
    return found
