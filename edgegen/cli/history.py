"""`edgegen history`: how the profiles in a folder changed over time."""

from __future__ import annotations

from pathlib import Path

import typer

from edgegen.cli import _terminal


def history(
    folder: Path = typer.Argument(help="A folder of profiles, with those in it."),
    metric: str = typer.Option("p50", help="p50, p90, ttft, tpot, rate, load, rss, quality.NAME."),
    bundle: list[str] = typer.Option([], help="Only of this bundle; may be given again."),
    engine: list[str] = typer.Option([], help="Only on this engine; may be given again."),
    device: list[str] = typer.Option([], "-d", "--device", help="Only on this device or board."),
    since: str = typer.Option("", help="From this day on, as 2026-11-30."),
    until: str = typer.Option("", help="To this day."),
    plot: Path = typer.Option(None, help="Draw it into FILE.png or FILE.html."),
    json: bool = typer.Option(False, "--json", help="Print the trends as JSON."),
) -> None:
    """Show how profiles in a folder changed: one line a bundle, engine, device and request."""
    from edgegen import history as histories
    from edgegen import trends

    found = histories.history(
        folder, metric, bundles=bundle, engines=engine, devices=device, since=since, until=until
    )
    if json:
        _terminal.print_json(found)
    else:
        plain = bool(_terminal.canvas()["plain"])
        _terminal.print_table(*trends.table(found, plain=plain), title=found.metric)
    if found.ignored:
        _terminal.note(f"{found.ignored} JSON files are no profiles or have no {metric}")
    if plot:
        trends.draw(found, plot, command=_terminal.command())
        _terminal.note(f"wrote {plot}")
