"""The trends of a history as a table, as a picture, and as a page of charts on its own."""

from __future__ import annotations

from html import escape
from pathlib import Path

from msgspec.structs import replace

from edgegen import records, sketch
from edgegen.errors import UsageError
from edgegen.history import History
from edgegen.rooms import missing
from edgegen.tables import Table, number

KINDS = (".png", ".html")
DOUBT = (
    "Profiles of two days did not take turns: a small change may be the machine's. Whether two "
    "bundles differ is answered by profiles that did, and by edgegen compare:"
)
TURNS = "edgegen profile A B --interleave -o DIR"


def table(history: History, *, plain: bool = False) -> Table:
    """A line for each trend; `plain` keeps its curve to ASCII."""
    unit = f" {history.unit}" if history.unit else ""
    columns = ["", "host", "profiles", "from", "to", f"first{unit}", f"last{unit}"]
    rows = []
    for trend in history.trends:
        values = [point.value for point in trend.points]
        days = [point.created[:10] for point in trend.points]
        ends = [days[0], days[-1], number(values[0]), number(values[-1])]
        change = "-" if trend.change is None else f"{trend.change:+.1%}"
        curve = sketch.sparkline(values[-40:], plain=plain)
        rows.append([trend.name, trend.device_name, str(len(values)), *ends, change, curve])
    return [*columns, "last vs those before", "trend"], rows


def draw(history: History, path: Path | str, *, command: str = "") -> None:
    """Write the picture, or the page with its charts; the ending says which. `command` was typed.

    Raises:
        UsageError: neither .png nor .html.
        MissingExtraError: Altair or vl-convert is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"{path}: not {' nor '.join(KINDS)}", f"name it {path.stem}.png")
    try:
        import vl_convert  # noqa: F401  # what Altair writes pictures with, and whence Vega comes

        from edgegen.charts import trend as charts
    except ModuleNotFoundError as error:
        raise missing(error, "the plot of a history") from error
    if kind == ".html":
        _page(history, path, command)
        return
    with records.whole(path) as part:
        charts.picture(history).save(str(part), format="png", scale_factor=2)


def headline(history: History) -> str:
    """What changed most, in one sentence."""
    moved = [trend for trend in history.trends if trend.change is not None]
    if not moved:
        return f"{history.metric}: nothing was measured twice"
    most = max(moved, key=lambda trend: abs(trend.change or 0.0))
    among = f", the largest change of {len(moved)}" if len(moved) > 1 else ""
    said = f"the last is {most.change:+.1%} against those before"
    return f"{history.metric} of {most.name}: {said}{among}"


def _page(history: History, path: Path, command: str) -> None:
    from edgegen import report
    from edgegen.charts import trend as charts
    from edgegen.report import markup, sections

    body = []
    for name, trends in charts.groups(history):
        part = replace(history, trends=trends)
        columns, lines = table(part)
        shown = ["profile", *columns[1:-1]], [line[:-1] for line in lines]  # the chart is the curve
        figures = markup.table(shown, f"{name or history.metric}: trends", numbered=True)
        content = markup.figure(charts.lines(history, trends)) + figures
        body.append(markup.section(name or history.metric, content))
    body += [markup.section("Keep in mind", f"<p>{DOUBT}</p><pre>{TURNS}</pre>")]
    body += [sections.commands([command] if command else [])]
    days = sorted(point.created[:10] for trend in history.trends for point in trend.points)
    count = f"{len(days)} profile{'s' if len(days) > 1 else ''}"
    report.write_page(
        path,
        title=f"EdgeGen history: {history.metric}",
        heading=f"<h1>{escape(headline(history))}</h1>",
        subtitle=f"{count}, {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        body=body,
    )
