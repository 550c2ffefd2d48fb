"""A comparison as one HTML file: everything is inside, nothing is fetched; light and dark.

    markup.py     tables that sort, figures, keys of colours
    sections.py   what stands on the page, part by part
    samples.py    what the models made, side by side

The page forbids the browser any request (Content-Security-Policy) and any code but its own script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from edgegen import __version__, records
from edgegen.compare import Comparison
from edgegen.profile import Profile
from edgegen.rooms import missing

FOOT = (
    "Every time is a raw sample of a fresh process, taken from outside; "
    "± and ranges are 95 % intervals."
)


def write_html(
    comparison: Comparison,
    profiles: Sequence[Profile],
    path: Path | str,
    *,
    pictures: Mapping[str, bytes] | None = None,
    texts: Mapping[str, str] | None = None,
    sheets: Iterable[Path] = (),
    commands: Iterable[str] = (),
    title: str = "EdgeGen report",
) -> None:
    """Write the page: the verdict, then charts of the raw samples, operators, doubts, environment.

    `pictures` are PNG files by caption, `texts` what models wrote, `sheets` files of
    `edgegen eval --sheet`, `commands` what was typed.

    Raises:
        MissingExtraError: Altair, or vl-convert which carries Vega, is not installed.
        NotFoundError, FormatError: a sheet that is not there, or is neither PNG nor Markdown.
    """
    try:
        from edgegen.report import samples, sections

        _vega()
    except ModuleNotFoundError as error:
        raise missing(error, "the report") from error
    ordered = in_order(comparison, profiles)
    body = [
        *sections.families(comparison, ordered),
        samples.section(pictures or {}, texts or {}, list(sheets)),
        sections.gates(comparison),
        sections.best(comparison),
        sections.operators(comparison, ordered),
        sections.rooflines(comparison, ordered),
        sections.drifts(comparison, ordered),
        sections.doubts(comparison),
        sections.environment(profiles),
        sections.commands(commands),
    ]
    write_page(
        path,
        title=title,
        heading=sections.heading(comparison, title),
        subtitle=_subtitle(profiles),
        body=body,
        foot=FOOT,
    )


def write_page(
    path: Path | str,
    *,
    title: str,
    heading: str,
    subtitle: str,
    body: Iterable[str],
    foot: str = "",
) -> None:
    """Write sections, as HTML, under a heading in HTML: the style, Vega and the script inside."""
    page = Template(_read("report.html")).substitute(
        title=escape(title),
        heading=heading,
        subtitle=escape(subtitle),
        foot=escape(foot),
        version=escape(__version__),
        css=_read("report.css"),
        library=_vega(),
        script=_read("report.js"),
        body="\n".join(filter(None, body)),
    )
    with records.whole(path) as part:
        part.write_text(page, encoding="utf-8")


def in_order(comparison: Comparison, profiles: Sequence[Profile]) -> dict[str, Profile]:
    """Each row's profile, by the row's name: `compare` keeps the order within a family."""
    left: dict[str, list[Profile]] = {}
    for profile in profiles:
        left.setdefault(profile.family, []).append(profile)
    return {row.name: left[row.family].pop(0) for row in comparison.rows}


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, without anything that could end its element."""
    import vl_convert

    # The argument may be left out, though its type does not say so: then it is the libraries alone.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


def _read(name: str) -> str:
    return (resources.files("edgegen") / "templates" / name).read_text(encoding="utf-8")


def _subtitle(profiles: Sequence[Profile]) -> str:
    where = sorted({profile.device_name for profile in profiles})
    when = sorted({profile.created[:10] for profile in profiles})
    count = f"{len(profiles)} profile{'s' if len(profiles) > 1 else ''}"
    return f"{count} on {', '.join(where)}; {' to '.join(dict.fromkeys((when[0], when[-1])))}"
