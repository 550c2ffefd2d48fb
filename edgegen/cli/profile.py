"""`edgegen profile`: measure bundles, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgegen.cli import _terminal
from edgegen.errors import EdgeGenError, NotComparableError, UsageError

if TYPE_CHECKING:
    from edgegen.profile import Profile
    from edgegen.spec import Options, Report
    from edgegen.tasks import Task


def profile(
    bundles: list[Path] = typer.Argument(help="Bundles; several are measured in turns."),
    runtime: str = typer.Option("", help="Engines, by commas; auto: the fastest here."),
    device: list[str] = typer.Option(
        [], "-d", "--device", help="cpu (default), gpu:1, npu, auto. Of a fleet: pi5, pi5/gpu, all."
    ),
    batch: int = typer.Option(1, help="Sequences or images at once."),
    prompt_tokens: int = typer.Option(None, help="Text: random tokens to read. [default: 32]"),
    new_tokens: int = typer.Option(None, help="Text: tokens to write. [default: 32]"),
    size: list[str] = typer.Option([], help="NAME=N: fix another free dimension."),
    threads: int = typer.Option(0, help="0 leaves it to the engine."),
    warmup: int = typer.Option(3, help="Runs thrown away first."),
    repeats: int = typer.Option(20, help="Runs timed."),
    rounds: int = typer.Option(None, help="Processes for these. [default: 5 in turns, else 1]"),
    interleave: bool = typer.Option(
        None,
        "--interleave/--no-interleave",
        help="Take turns, A B C then C B A, for compare to pair. [default: for several]",
    ),
    seed: int = typer.Option(0, help="Of the prompts or latents; a new one each repeat."),
    provider: list[str] = typer.Option([], help="KEY=VALUE for the engine."),
    adapter: str = typer.Option(
        "", help="Adapters of the bundle, by commas; none is the model without. [default: its own]"
    ),
    allow_fallback: bool = typer.Option(False, help="Let operators run on another device."),
    verify: bool = typer.Option(
        False, "--verify", help="Run the golden data too; keep the drift. A fleet always does."
    ),
    roofline: bool = typer.Option(
        False, "--roofline", help="Say why it is slow, and what int8, int4 or half would buy."
    ),
    watts: float = typer.Option(
        0.0, help="Of the busy CPU, to model energy without a meter. [default: its own rating]"
    ),
    timeout: float = typer.Option(1800.0, help="Seconds a process may take."),
    fleet: str = typer.Option("", help="tls://HOST:8786: on devices that have joined that hub."),
    keys: Path = typer.Option(
        None, help="Folder of keys for the fleet. [default: ~/.config/edgegen/fleet/client]"
    ),
    resume: bool = typer.Option(False, "--resume", help="Measure only what -o does not hold yet."),
    output: Path = typer.Option(None, "-o", "--output", help="FILE, or for several a folder."),
    json: bool = typer.Option(False, "--json", help="Print the profile as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Measure load, first and later steps, memory and operators of bundles."""
    from edgegen import measure, tasks, workload
    from edgegen.spec import Options

    _range("--timeout", timeout, 0.1, 1e6)
    if resume and output is None:
        raise UsageError("--resume looks at what is in -o, which is not given", "give -o DIR")
    opening = Options(
        threads=threads,
        provider=dict(_pairs("--provider", provider)),
        allow_fallback=allow_fallback,
    )
    jobs = [
        measure.job(
            path,
            runtime=_engine(path, engine, device, fleet, opening) or None,
            request=workload.request_for(
                path,
                batch=batch,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                sizes={key: _number(f"--size {key}", n) for key, n in _pairs("--size", size)},
                seed=seed,
            ),
            threads=threads,
            warmup=warmup,
            repeats=repeats,
            provider=opening.provider,
            adapter=name,
            allow_fallback=allow_fallback,
            verify=verify,
            roofline=roofline,
            watts=watts,
        )
        for path in bundles
        for engine in runtime.split(",")
        for name in adapter.split(",")
    ]
    places = _boards(fleet, keys, device) if fleet else [("", one) for one in device or ["cpu"]]
    groups = tasks.groups(tasks.to_files(tasks.on_each(jobs, places), output), interleave)
    if rounds is None:
        turns = any(len(group) > 1 for group in groups)
        rounds = min(measure.ROUNDS, max(repeats, 1)) if turns else 1
    left = tasks.missing(groups) if resume else groups
    if resume:
        _terminal.note(
            f"{sum(map(len, groups)) - sum(map(len, left))} of "
            f"{sum(map(len, groups))} profiles are there already"
        )
    with _terminal.progress(quiet or json) as report:
        if fleet:
            profiles, failures = _remote(fleet, keys, left, rounds, timeout, report)
        else:
            profiles, failures = _local(left, rounds, timeout, report), []
    if profiles or json:
        _print(profiles, json)
    _demand_all(failures, sum(map(len, left)))


def _engine(path: Path, engine: str, devices: list[str], fleet: str, options: Options) -> str:
    """`engine`; for auto the fastest on the one device that was named."""
    if engine != "auto":
        return engine
    if fleet or len(devices) > 1:
        raise UsageError(
            "--runtime auto looks for the fastest engine on one device, here",
            "name the engines, by commas: --runtime onnxruntime,native",
        )
    from edgegen.cli.run import fastest

    return fastest(path, devices[0] if devices else "cpu", options)


def _local(
    groups: list[list[Task]], rounds: int, timeout_s: float, report: Report
) -> list[Profile]:
    from edgegen import measure

    profiles: list[Profile] = []
    for group in groups:
        jobs = [task.job for task in group]
        found = measure.interleave(jobs, rounds=rounds, timeout_s=timeout_s, report=report)
        for task, one in zip(group, found, strict=True):
            _save(task, one)
        profiles += found
    return profiles


def _boards(fleet: str, keys: Path | None, names: list[str]) -> list[tuple[str, str]]:
    """(board, its device) of `pi5`, `pi5/gpu`, `all`, `all/npu`."""
    from edgegen.fleet import address, client
    from edgegen.fleet import keys as certificates

    where = address.parse(fleet)
    if not names:
        raise UsageError(
            "--fleet: no device is named",
            f"give --device all, or some of: edgegen devices --fleet {where}",
        )
    folder = certificates.find(where, keys, certificates.CLIENT)
    pairs = [name.partition("/") for name in names]
    chosen = client.choose(where, folder, [name for name, _, _ in pairs])
    return [
        (board, device or "cpu")
        for name, _, device in pairs
        for board in (chosen if name == client.ALL else [name])
    ]


def _remote(
    fleet: str,
    keys: Path | None,
    groups: list[list[Task]],
    rounds: int,
    timeout_s: float,
    report: Report,
) -> tuple[list[Profile], list[EdgeGenError]]:
    from edgegen.fleet import address, client
    from edgegen.fleet import keys as certificates

    def found(outcome: client.Outcome) -> None:
        if outcome.profile:
            _save(outcome.task, outcome.profile)
        else:
            _terminal.note(f"failed: {outcome.error}")

    where = address.parse(fleet)
    folder = certificates.find(where, keys, certificates.CLIENT)
    outcomes = client.profile(
        where, folder, groups, rounds=rounds, timeout_s=timeout_s, found=found, report=report
    )
    profiles = [one.profile for one in outcomes if one.profile]
    return profiles, [one.error for one in outcomes if one.error]


def _demand_all(failures: list[EdgeGenError], asked: int) -> None:
    """Raise what failed as one error: of their kind where all are of one."""
    if not failures:
        return
    kinds = {type(error) for error in failures}
    kind = kinds.pop() if len(kinds) == 1 else EdgeGenError
    said = "; ".join(dict.fromkeys(map(str, failures)))
    hints = [*dict.fromkeys(error.hint for error in failures if error.hint)]
    if not any("--resume" in hint for hint in hints):
        hints.append("run again with --resume -o DIR for what is missing")
    raise kind(f"{len(failures)} of {asked} profiles are missing: {said}", "; ".join(hints))


def _range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(f"{option} is {value:g}", f"give a number from {least:g} to {most:g}")


def _pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for (key, equals, value), text in zip(pairs, texts, strict=True):
        if not (key and equals and value):
            raise UsageError(f"{option} {text!r}", f"write it as {option} NAME=VALUE")
    return [(key, value) for key, _, value in pairs]


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{option}={text}: not a whole number") from error


def _save(task: Task, one: Profile) -> None:
    from edgegen import records

    if task.file:
        records.write(one, task.file)
        _terminal.note(f"wrote {task.file}")


def _print(profiles: list[Profile], json: bool) -> None:
    if json:
        _terminal.print_json(profiles[0] if len(profiles) == 1 else profiles)
        return
    from edgegen import sketch, tables
    from edgegen.compare import compare, families

    try:
        found = [(profiles, compare(profiles))]
    except NotComparableError as error:  # each fitted its request to itself
        _terminal.note(f"not compared: {error}")
        found = [([one], compare([one])) for one in profiles]
    for members, comparison in found:
        for family, rows in families(comparison).items():
            _terminal.print_table(*tables.table(rows))
            mine = [one for one in members if one.family == family]
            names = [row.name for row in rows]
            typer.echo(sketch.distributions(mine, names, **_terminal.canvas()) + "\n")
    if len(profiles) == 1 and not profiles[0].roofline:
        _operators(profiles[0])
    for one in profiles:
        _roofline(one)
    for source in dict.fromkeys(one.energy_source for one in profiles):
        _terminal.note(f"energy: {source}")
    for note in dict.fromkeys(note for _, one in found for note in tables.footnotes(one)):
        _terminal.note(note)


def _roofline(one: Profile) -> None:
    """A table, a sentence, and what these rest on."""
    if one.roofline:
        from edgegen import rooftables

        _terminal.print_table(*rooftables.roofs(one.roofline), f"roofline of {one.name()}")
        typer.echo(one.roofline.sentence)
        for line in rooftables.footnotes(one.roofline):
            _terminal.note(line)


def _operators(one: Profile) -> None:
    total = sum(o.total_ms for o in one.operators)
    rows: list[tuple[Any, ...]] = [
        (o.kind, o.device, o.precision, o.calls, f"{o.total_ms / total:.1%}", o.name)
        for o in one.operators[:8]
    ]
    if rows:
        columns = "operator", "device", "precision", "calls", "share of time", "costliest node"
        _terminal.print_table(columns, rows)
