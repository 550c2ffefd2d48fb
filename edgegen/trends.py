"""The trends of a history as a table, and as a picture: PNG, or one HTML file on its own."""

from __future__ import annotations

from pathlib import Path

from edgegen import records, sketch
from edgegen.errors import UsageError
from edgegen.history import History
from edgegen.rooms import missing
from edgegen.tables import Table, number

KINDS = (".png", ".html")


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


def draw(history: History, path: Path | str) -> None:
    """Write the picture; its ending says which kind.

    Raises:
        UsageError: neither .png nor .html.
        MissingExtraError: Altair or vl-convert is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"{path}: not {' nor '.join(KINDS)}", f"name it {path.stem}.png")
    try:
        import altair
        import vl_convert  # noqa: F401  # what Altair writes either kind with
    except ModuleNotFoundError as error:
        raise missing(error, "the plot of a history") from error
    unit = f", {history.unit}" if history.unit else ""
    chart = (
        altair.Chart(altair.InlineData(values=_rows(history)))
        .mark_line(point=True)
        .encode(
            x=altair.X(
                "measured:T", title=None, axis=altair.Axis(format="%Y-%m-%d %H:%M", tickCount=6)
            ),
            y=altair.Y("value:Q", title=f"{history.metric}{unit}", scale=altair.Scale(zero=False)),
            color=altair.Color(
                "profile:N", legend=altair.Legend(orient="bottom", columns=1, labelLimit=0)
            ),
            tooltip=["profile:N", "measured:T", "value:Q", "engine:N", "file:N"],
        )
        .properties(width=720, height=360)
    )
    with records.whole(path) as part:
        if path.suffix.lower() == ".png":
            chart.save(str(part), format="png", scale_factor=2)
        else:
            chart.save(str(part), format="html", inline=True)


def _rows(history: History) -> list[dict[str, object]]:
    hosts = {trend.device_name for trend in history.trends}
    return [
        {
            "profile": f"{trend.name} ({trend.device_name})" if len(hosts) > 1 else trend.name,
            "measured": point.created,
            "value": point.value,
            "engine": f"{trend.engine} {point.engine_version}",
            "file": point.file,
        }
        for trend in history.trends
        for point in trend.points
    ]
