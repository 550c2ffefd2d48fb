"""`edgegen compare`: profiles side by side."""

from __future__ import annotations

from pathlib import Path

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError


def compare(
    files: list[Path] = typer.Argument(help="Profiles; a folder stands for those in it."),
    gate: list[str] = typer.Option([], help="As 'p50<=+5%' or 'size<=20MB'; exit 4 when missed."),
    html: Path = typer.Option(None, help="Write a report, one HTML file with plots."),
    markdown: bool = typer.Option(False, "--markdown", help="Print Markdown tables."),
    json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare profiles with the first: ratios, how sure they are, and gates."""
    from edgegen import profile as profiles_on_disk
    from edgegen import tables
    from edgegen.compare import compare as compare_profiles
    from edgegen.compare import families, require

    if markdown and json:
        raise UsageError("--markdown and --json both print to stdout", "choose one of them")
    profiles = [profiles_on_disk.read(path) for path in _expand(files)]
    comparison = compare_profiles(profiles, gate)
    if json:
        _terminal.print_json(comparison)
    elif markdown:
        typer.echo(tables.markdown(comparison), nl=False)
    else:
        for family, rows in families(comparison).items():
            _terminal.print_table(*tables.table(rows), title=family)
        if comparison.gates:
            _terminal.print_table(*tables.gate_table(comparison), title="gates")
        for note in tables.footnotes(comparison):
            _terminal.note(note)
    if html:
        from edgegen.report import write_html

        write_html(comparison, profiles, html, commands=[_command()])
        _terminal.note(f"wrote {html}")
    require(comparison)


def _expand(files: list[Path]) -> list[Path]:
    """The files; for a folder the JSON files in it, by name."""
    found = [
        f for path in files for f in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    if not found:
        raise UsageError(
            f"no profiles in {', '.join(map(str, files))}",
            "make some with: edgegen profile BUNDLE -o FOLDER",
        )
    return found


def _command() -> str:
    """What was typed."""
    import shlex
    import sys

    return shlex.join(["edgegen", *sys.argv[1:]])
