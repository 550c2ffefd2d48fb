"""`edgegen compare`: profiles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.compare import Comparison
    from edgegen.profile import Profile


def compare(
    files: list[Path] = typer.Argument(help="Profiles; a folder stands for those in it, by name."),
    gate: list[str] = typer.Option([], help="As 'p50<=+5%' or 'size<=20MB'; exit 4 when missed."),
    best: str = typer.Option(
        None, help="As 'p50<=20ms, rss<=200MB': which one to take, and why; exit 4 when none fits."
    ),
    html: Path = typer.Option(None, help="Write a report, one HTML file with plots."),
    sheet: list[Path] = typer.Option(
        [], help="Samples side by side for the report, made by eval --sheet: .png or .md."
    ),
    junit: Path = typer.Option(None, help="Write gates and budget as JUnit XML."),
    markdown: bool = typer.Option(False, "--markdown", help="Print Markdown tables."),
    markdown_file: Path = typer.Option(None, help="Write the Markdown tables there."),
    json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare profiles with the first: ratios, how sure they are, gates, and which to take."""
    from edgegen import choice, tables
    from edgegen import profile as profiles_on_disk
    from edgegen.compare import compare as compare_profiles
    from edgegen.compare import require

    if markdown and json:
        raise UsageError("--markdown and --json both print to stdout", "choose one of them")
    if best is not None:
        choice.parse(best)
    if junit and not (gate or best):
        raise UsageError("--junit has nothing to report", "give a gate: --gate 'p50<=+5%'")
    if sheet and not html:
        raise UsageError("--sheet goes into the report", "say where to: --html FILE")
    paths = _expand(files)
    profiles = [profiles_on_disk.read(path) for path in paths]
    _each_once(paths, profiles)
    comparison = compare_profiles(profiles, gate, best or "")
    if json:
        _terminal.print_json(comparison)
    elif markdown:
        typer.echo(tables.markdown(comparison), nl=False)
    else:
        _print(comparison, profiles)
    _write(comparison, profiles, html, sheet, junit, markdown_file)
    require(comparison)


def _print(comparison: Comparison, profiles: list[Profile]) -> None:
    """Verdict, table and samples of each family; gates, the pick, and what to keep in mind."""
    from edgegen import sketch, tables
    from edgegen.compare import families

    for family, rows in families(comparison).items():
        if comparison.verdicts[family]:
            typer.echo(comparison.verdicts[family])
        _terminal.print_table(*tables.table(rows), title=family)
        mine = [profile for profile in profiles if profile.family == family]
        names = [row.name for row in rows]
        typer.echo(sketch.distributions(mine, names, **_terminal.canvas()) + "\n")
    if comparison.gates:
        _terminal.print_table(*tables.gate_table(comparison), title="gates")
    if comparison.best:
        _terminal.print_table(*tables.best_table(comparison.best))
        typer.echo(tables.pick(comparison.best))
    for note in tables.footnotes(comparison):
        _terminal.note(note)


def _write(
    comparison: Comparison,
    profiles: list[Profile],
    html: Path | None,
    sheets: list[Path],
    junit: Path | None,
    markdown: Path | None,
) -> None:
    """The files that were asked for."""
    from edgegen import junit as junit_xml
    from edgegen import records, tables

    if html:
        from edgegen.report import write_html

        write_html(comparison, profiles, html, sheets=sheets, commands=[_terminal.command()])
    if junit:
        junit_xml.write(comparison, junit)
    if markdown:
        with records.whole(markdown) as part:
            part.write_text(tables.markdown(comparison), encoding="utf-8")
    for path in filter(None, (html, junit, markdown)):
        _terminal.note(f"wrote {path}")


def _expand(files: list[Path]) -> list[Path]:
    """The files; for a folder the JSON files in it, by name."""
    found = []
    for path in files:
        if (path / "manifest.json").is_file():
            raise UsageError(
                f"{path} is a bundle, not a profile", f"make one: edgegen profile {path} -o FILE"
            )
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"no profiles in {path}", "make some with: edgegen profile BUNDLE -o FOLDER"
            )
        found += inside
    return found


def _each_once(paths: list[Path], profiles: list[Profile]) -> None:
    """One measurement against itself would show no difference, and a noise of nothing."""
    for n, one in enumerate(profiles):
        if one in profiles[:n]:
            first = paths[profiles.index(one)]
            raise UsageError(
                f"{paths[n]}: the same measurement as {first}",
                "give it once; for how noisy the machine is: edgegen profile B B -o DIR",
            )
