"""`edgegen profile`: measure bundles, each in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.profile import Profile
    from edgegen.workload import Job


def profile(
    bundles: list[Path] = typer.Argument(help="Bundles; several are measured in turns."),
    runtime: str = typer.Option("", help="Engines, by commas; default: the first that fits."),
    device: str = typer.Option("cpu", "-d", "--device", help="cpu, gpu, gpu:1, npu, auto."),
    batch: int = typer.Option(1, help="Sequences or images at once."),
    prompt_tokens: int = typer.Option(None, help="Text: random tokens to read. [default: 32]"),
    new_tokens: int = typer.Option(None, help="Text: tokens to write. [default: 32]"),
    size: list[str] = typer.Option([], help="NAME=N: fix another free dimension."),
    threads: int = typer.Option(0, help="0 leaves it to the engine."),
    warmup: int = typer.Option(3, help="Runs thrown away first."),
    repeats: int = typer.Option(20, help="Runs timed."),
    rounds: int = typer.Option(None, help="Processes for these. [default: 5 for several, else 1]"),
    seed: int = typer.Option(0, help="Of the prompts or latents; a new one each repeat."),
    provider: list[str] = typer.Option([], help="KEY=VALUE for the engine."),
    allow_fallback: bool = typer.Option(False, help="Let operators run on another device."),
    verify: bool = typer.Option(False, "--verify", help="Run the golden data too; keep the drift."),
    timeout: float = typer.Option(1800.0, help="Seconds a process may take."),
    output: Path = typer.Option(None, "-o", "--output", help="FILE, or for several a folder."),
    json: bool = typer.Option(False, "--json", help="Print the profile as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Measure load, first and later steps, memory and operators of bundles."""
    from edgegen import measure, workload

    _range("--timeout", timeout, 0.1, 1e6)
    jobs = [
        measure.job(
            path,
            runtime=engine or None,
            device=device,
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
            provider=dict(_pairs("--provider", provider)),
            allow_fallback=allow_fallback,
            verify=verify,
        )
        for path in bundles
        for engine in runtime.split(",")
    ]
    files = _files(jobs, output)
    if rounds is None:
        rounds = min(measure.ROUNDS, max(repeats, 1)) if len(jobs) > 1 else 1
    with _terminal.progress(quiet or json) as report:
        profiles = measure.interleave(jobs, rounds=rounds, timeout_s=timeout, report=report)
    _save(profiles, files)
    _print(profiles, json)


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


def _files(jobs: list[Job], output: Path | None) -> list[Path]:
    """Where each profile goes; none when it is only printed. Checked before the long work."""
    from edgegen import records

    if output is None:
        return []
    if len(jobs) == 1 and not output.is_dir():
        return [records.target(output)]
    if output.exists() and not output.is_dir():
        several = f"-o {output} is a file, but there are {len(jobs)} profiles"
        raise UsageError(several, "give a folder")
    stems = [_stem(job) for job in jobs]
    for stem in stems:
        if stems.count(stem) > 1:
            raise UsageError(f"two profiles would be {output / stem}.json", "rename one bundle")
    return [records.target(output / f"{stem}.json") for stem in stems]


def _stem(job: Job) -> str:
    """vae-int8-openvino-cpu."""
    parts = os.path.basename(os.path.abspath(job.path)), job.runtime, job.device.replace(":", "")
    return "-".join(part for part in parts if part)


def _save(profiles: list[Profile], files: list[Path]) -> None:
    from edgegen import records

    for one, file in zip(profiles, files, strict=bool(files)):
        records.write(one, file)
        _terminal.note(f"wrote {file}")


def _print(profiles: list[Profile], json: bool) -> None:
    if json:
        _terminal.print_json(profiles[0] if len(profiles) == 1 else profiles)
        return
    from edgegen import tables
    from edgegen.compare import compare

    alone = [compare([one]) for one in profiles]
    for family in dict.fromkeys(one.family for one in profiles):
        rows = [found.rows[0] for found in alone if found.rows[0].family == family]
        _terminal.print_table(*tables.table(rows))
    if len(profiles) == 1:
        _operators(profiles[0])
    for note in dict.fromkeys(note for found in alone for note in tables.footnotes(found)):
        _terminal.note(note)


def _operators(one: Profile) -> None:
    total = sum(o.total_ms for o in one.operators)
    rows: list[tuple[Any, ...]] = [
        (o.kind, o.device, o.precision, o.calls, f"{o.total_ms / total:.1%}", o.name)
        for o in one.operators[:8]
    ]
    if rows:
        columns = "operator", "device", "precision", "calls", "share of time", "costliest node"
        _terminal.print_table(columns, rows)
