"""`edgegen demo`: the main job end to end, on real models."""

from __future__ import annotations

from pathlib import Path

import typer

from edgegen.cli import _terminal


def demo(
    family: list[str] = typer.Option([], help="gpt, vae or gan; repeatable. [default: all]"),
    output: Path = typer.Option(Path("edgegen-demo"), "-o", "--output", help="Where it all goes."),
    json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Train, export, verify, run, profile and compare: SmolLM2-135M, a VAE and a GAN."""
    from edgegen import tables
    from edgegen.compare import families
    from edgegen.demo import FAMILIES
    from edgegen.demo import demo as run

    with _terminal.progress(quiet or json) as report:
        said = (lambda line: None) if quiet else _terminal.note
        comparison = run(output, family or FAMILIES, report=report, note=said)
    if json:
        _terminal.print_json(comparison)
        return
    for name, rows in families(comparison).items():
        _terminal.print_table(*tables.table(rows), title=name)
    for line in tables.footnotes(comparison):
        _terminal.note(line)
