"""Trends as a table and as files; what the files show is tested beside the charts."""

import builtins
import sys

import pytest

from edgegen import trends
from edgegen.errors import MissingExtraError, UsageError
from edgegen.history import History, Point, Trend


def line(name="vae ort cpu", values=(10, 12, 6), change=None, host="a processor"):
    points = tuple(
        Point(f"2026-11-0{n + 1}T10:00:00Z", float(value), "1.0", f"{n}.json")
        for n, value in enumerate(values)
    )
    return Trend(name, name.split()[0], "fp32", "ort", "cpu", host, "{}", points, change)


def history(*lines, metric="p50", unit="ms"):
    return History(1, metric, unit, lines)


def test_a_line_says_how_many_from_when_to_when_and_from_what_to_what():
    columns, (row,) = trends.table(history(line(change=-0.4545)))
    assert dict(zip(columns, row, strict=True)) == {
        "": "vae ort cpu",
        "host": "a processor",
        "profiles": "3",
        "from": "2026-11-01",
        "to": "2026-11-03",
        "first ms": "10.0",
        "last ms": "6.00",
        "last vs those before": "-45.5%",
        "trend": "▆█▁",
    }


def test_one_profile_has_no_change():
    _, (row,) = trends.table(history(line(values=[3])))
    assert row[2:8] == ["1", "2026-11-01", "2026-11-01", "3.00", "3.00", "-"]


def test_what_has_no_unit_has_none_in_its_columns():
    columns, _ = trends.table(history(line(), metric="quality.fid", unit=""))
    assert columns[5:7] == ["first", "last"]


def test_the_curve_is_of_the_last_forty_and_plain_where_the_terminal_is():
    _, (row,) = trends.table(history(line(values=range(1, 9))))
    assert row[-1] == "▁▂▃▄▅▆▇█"
    _, (row,) = trends.table(history(line(values=[1] * 10 + [2] * 60)), plain=True)
    assert len(row[-1]) == 40
    assert row[-1].isascii()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([None], "p50: nothing was measured twice"),
        ([0.5], "p50 of a ort cpu: the last is +50.0% against those before"),
        ([None, -0.25], "p50 of b ort cpu: the last is -25.0% against those before"),
        (
            [0.1, -0.25],
            "p50 of b ort cpu: the last is -25.0% against those before, the largest change of 2",
        ),
    ],
)
def test_the_headline_is_what_changed_most(changes, said):
    found = (
        line(f"{name} ort cpu", change=change) for name, change in zip("ab", changes, strict=False)
    )
    assert trends.headline(history(*found)) == said


def test_a_file_is_a_picture_or_a_page(tmp_path):
    with pytest.raises(UsageError, match=r"x\.gif: not \.png nor \.html") as error:
        trends.draw(history(line()), tmp_path / "x.gif")
    assert error.value.hint == "name it x.png"


def test_without_the_charts_library_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name in ("altair", "vl_convert"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "vl_convert", raising=False)
    with pytest.raises(MissingExtraError, match="the plot of a history needs") as error:
        trends.draw(history(line()), tmp_path / "x.html")
    assert error.value.hint == "run: pip install 'edgegen[report]'"
    assert not (tmp_path / "x.html").exists()


def test_a_page_has_its_headline_a_table_with_numbers_and_what_was_typed(tmp_path):
    pytest.importorskip("vl_convert", reason="needs the report extra")
    found = history(line(change=-0.4545), line("<b> ort cpu", values=[3]))
    trends.draw(found, tmp_path / "x.html", command="edgegen history a&b")
    page = (tmp_path / "x.html").read_text()
    assert "<h1>p50 of vae ort cpu: the last is -45.5% against those before</h1>" in page
    assert "4 profiles, 2026-11-01 to 2026-11-03" in page
    assert '<span class="chip" style="background:var(--c1)">2</span>&lt;b&gt; ort cpu' in page
    assert "edgegen history a&amp;b" in page
    assert "did not take turns" in page
    assert "95 % intervals" not in page  # those are of a comparison
    assert "<b> ort" not in page


def test_many_lines_have_a_section_for_each_bundle(tmp_path):
    pytest.importorskip("vl_convert", reason="needs the report extra")
    found = history(*(line(f"{name} ort cpu{n}") for name in "ab" for n in range(5)))
    trends.draw(found, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert [f"<h2>{name}</h2>" in page for name in ("a", "b", "p50")] == [True, True, False]


def test_a_picture_is_a_png(tmp_path):
    pytest.importorskip("vl_convert", reason="needs the report extra")
    trends.draw(history(line()), tmp_path / "x.PNG")
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")
