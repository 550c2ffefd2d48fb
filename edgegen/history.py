"""Profiles over time: a folder of them, asked by DuckDB; one trend for all that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import Struct

from edgegen import gates
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.profile import SAMPLES_FOR
from edgegen.records import decode
from edgegen.rooms import missing, nearest
from edgegen.spec import Request

SCHEMA_VERSION = 1
BIGGEST = 1 << 30  # bytes of one profile
MAIN = "if(len(flatten(steps_ms)) > 0, flatten(steps_ms), first_ms)"
QUANTILE = f"list_aggregate({MAIN}, 'quantile_cont'"
TEXT = "len(flatten(steps_ms)) > 0"
# How each metric of `gates.METRICS` is had from a profile's columns.
SQL = {
    "p50": f"list_median({MAIN})",
    "p90": f"if(len({MAIN}) >= {SAMPLES_FOR[90]}, {QUANTILE}, 0.9), NULL)",
    "p99": f"if(len({MAIN}) >= {SAMPLES_FOR[99]}, {QUANTILE}, 0.99), NULL)",
    "ttft": f"if({TEXT}, list_median(first_ms), NULL)",
    "tpot": f"if({TEXT}, list_median(flatten(steps_ms)), NULL)",
    "rate": f"1000 * CAST(request->>'batch' AS DOUBLE) / list_median({MAIN})",
    "load": "load_ms",
    "cold": "cold_ms",
    "peak_rss": "peak_rss_mb",
    "size": "size_mb",
    "energy": "energy_j",
}
COLUMNS = {
    **dict.fromkeys(("bundle", "family", "precision", "engine", "engine_version"), "VARCHAR"),
    **dict.fromkeys(("board", "device", "device_name"), "VARCHAR"),
    **dict.fromkeys(("load_ms", "cold_ms", "size_mb", "peak_rss_mb", "energy_j"), "DOUBLE"),
    **dict.fromkeys(("schema_version", "threads"), "BIGINT"),
    "request": "JSON",
    "created": "TIMESTAMPTZ",
    "first_ms": "DOUBLE[]",
    "steps_ms": "DOUBLE[][]",
    "quality": "MAP(VARCHAR, DOUBLE)",
}
# What has to be alike for two profiles to lie on one line.
ALIKE = ("bundle", "precision", "engine", "board", "device", "device_name", "threads", "request")


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    """One profile's value, and when (ISO 8601, UTC) and with which engine it was measured."""

    created: str
    value: float
    engine_version: str
    file: str


class Trend(Struct, frozen=True, forbid_unknown_fields=True):
    """The profiles of one bundle, engine, device and request in the order of their dates.

    `change` is the last value against the median of those before, as a share; None of one alone.
    Two days are not two turns: a small change may be the machine's.
    """

    name: str
    bundle: str
    precision: str
    engine: str
    device: str
    device_name: str
    request: str
    points: tuple[Point, ...]
    change: float | None


class History(Struct, frozen=True, forbid_unknown_fields=True):
    """What was found; `ignored` are JSON files that are no profiles or lack the metric."""

    schema_version: int
    metric: str
    unit: str
    trends: tuple[Trend, ...]
    ignored: int = 0


def history(
    folder: Path | str,
    metric: str = "p50",
    *,
    bundles: Sequence[str] = (),
    engines: Sequence[str] = (),
    devices: Sequence[str] = (),
    since: str = "",
    until: str = "",
) -> History:
    """The trends of `metric` in the profiles under `folder`, the deepest folder included.

    Each of `bundles`, `engines`, `devices` narrows it down, as do the days `since` and `until`
    (YYYY-MM-DD, both included). A device is a device, or a board of a fleet.

    Raises:
        NotFoundError: no such folder, no profile in it, or none that was asked for.
        FormatError: a JSON file is broken.
        UsageError: an unknown metric or a date that is none.
        MissingExtraError: DuckDB is not installed.
    """
    value, parameters = _expression(metric)
    days = [_day("--since", since), _day("--until", until)]
    files = _files(Path(folder))
    rows = _query(files, value, parameters)
    if not rows:
        raise NotFoundError(
            f"{folder}: {len(files)} JSON files, none of them a profile with {metric}",
            _way_to(metric),
        )
    asked = {"bundle": bundles, "engine": engines, "device": devices}
    for column, wanted in asked.items():
        rows = _only(rows, column, wanted)
    first, last = days
    kept = [
        row
        for row in rows
        if (not first or row["day"][:10] >= first) and (not last or row["day"][:10] <= last)
    ]
    if not kept:
        found = f"{rows[0]['day'][:10]} to {rows[-1]['day'][:10]}"
        raise NotFoundError(f"{folder}: no profile of these days", f"have: {found}")
    unit = gates.METRICS.get(metric, "")
    return History(SCHEMA_VERSION, metric, unit, _trends(kept), len(files) - len(rows))


def _expression(metric: str) -> tuple[str, list[str]]:
    """SQL for the value of a metric, and the parameters in it."""
    name = gates.SHORT.get(metric, metric)
    if name.startswith("quality."):
        return "quality[?]", [name.removeprefix("quality.")]
    if name not in SQL:
        raise UsageError(f"no metric {metric!r}", nearest(metric, [*SQL, "quality.NAME"]))
    return SQL[name], []


def _way_to(metric: str) -> str:
    """How a profile with that metric is made."""
    if metric.startswith("quality."):
        return "make one with: edgegen eval BUNDLE --data DATA --save; edgegen profile BUNDLE"
    if metric in ("ttft", "tpot"):
        return "these two are of text; of other bundles there is: --metric p50"
    return "make one with: edgegen profile BUNDLE -o FOLDER"


def _day(option: str, text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no day", "write it as 2026-11-30") from error


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder", "give the folder that holds profiles")
    files = sorted(path for path in folder.rglob("*.json") if path.is_file())
    for path in files:
        if not path.stat().st_size:
            raise FormatError(f"{path}: an empty file", "remove it, or profile again")
    return files


def _query(files: Sequence[Path], value: str, parameters: list[str]) -> list[dict[str, Any]]:
    """One row for each profile that has the value, by date."""
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise missing(error, "history") from error
    if not files:
        return []
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
    when = "strftime(timezone('UTC', created), '%Y-%m-%dT%H:%M:%SZ')"
    query = f"""
        SELECT {", ".join(ALIKE)}, filename, engine_version, {when} AS day, {value} AS value
        FROM read_json(?, columns={{{columns}}}, filename=true, maximum_object_size={BIGGEST})
        WHERE schema_version IS NOT NULL AND len(first_ms) > 0
          AND bundle IS NOT NULL AND precision IS NOT NULL AND request IS NOT NULL
          AND engine IS NOT NULL AND device IS NOT NULL AND device_name IS NOT NULL
          AND created IS NOT NULL AND value IS NOT NULL
        ORDER BY created, filename
    """
    # It must not look for extensions on the network.
    quiet = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(config=quiet) as database:
        try:
            found = database.execute(query, [*parameters, [str(path) for path in files]])
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            said = str(error).splitlines()[0]
            raise FormatError(f"a JSON file is broken: {said}", "restore or remove it") from error


def _only(rows: list[dict[str, Any]], column: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The rows whose column, or for a device its board, is one of `wanted`."""
    if not wanted:
        return rows
    seen = [{row[column], row["board"] if column == "device" else None} for row in rows]
    have = sorted({name for names in seen for name in names if name})
    for name in wanted:
        if name not in have:
            raise NotFoundError(f"no profile of {column} {name!r}", nearest(name, have))
    return [row for row, names in zip(rows, seen, strict=True) if names & set(wanted)]


def _trends(rows: Sequence[dict[str, Any]]) -> tuple[Trend, ...]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in ALIKE), []).append(row)
    return tuple(_trend(group) for group in groups.values())


def _trend(rows: Sequence[dict[str, Any]]) -> Trend:
    last = rows[-1]
    values = [float(row["value"]) for row in rows]
    before = median(values[:-1]) if len(values) > 1 else 0.0
    device = f"{last['board']}/{last['device']}" if last["board"] else last["device"]
    return Trend(
        name=_name(last, device),
        bundle=last["bundle"],
        precision=last["precision"],
        engine=last["engine"],
        device=device,
        device_name=last["device_name"],
        request=last["request"],
        points=tuple(
            Point(row["day"], value, row["engine_version"], row["filename"])
            for row, value in zip(rows, values, strict=True)
        ),
        change=values[-1] / before - 1 if before > 0 else None,
    )


def _name(row: dict[str, Any], device: str) -> str:
    """Bundle, precision, engine, device; threads and request where they are not the usual ones."""
    named, precision = row["bundle"], row["precision"]
    parts = [named if precision in named else f"{named} {precision}", row["engine"], device]
    request = decode(Request, row["request"].encode(), row["filename"])
    if row["threads"]:
        parts.append(f"threads={row['threads']}")
    if request.batch != 1:
        parts.append(f"batch={request.batch}")
    if request.new_tokens:
        parts.append(f"tokens={request.prompt_tokens}+{request.new_tokens}")
    return " ".join([*parts, *(f"{name}={size}" for name, size in request.sizes.items())])
