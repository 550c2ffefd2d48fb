"""Trends as charts: what is in their specifications."""

import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import look, trend
from edgegen.charts.look import Span
from edgegen.history import History, Point, Trend


def line(name, values, versions=(), host="a processor", day=1):
    versions = versions or ["1.0"] * len(values)
    points = tuple(
        Point(f"2026-11-0{day + n}T10:00:00Z", float(value), version, f"{name}/{n}.json")
        for n, (value, version) in enumerate(zip(values, versions, strict=True))
    )
    bundle, engine = name.split()
    return Trend(name, bundle, "fp32", engine, "cpu", host, "{}", points, None)


def history(*trends):
    return History(1, "p50", "ms", trends)


def rows(figure, layer=0):
    """What a layer draws, which Altair keeps beside the layers."""
    return figure.spec["datasets"][figure.spec["layer"][layer]["data"]["name"]]


def test_every_profile_is_a_mark_with_its_day_value_and_engine():
    found = history(line("a ort", [10.004, 12]), line("b ort", [20]))
    drawn = rows(trend.lines(found, found.trends))
    assert [(row["n"], row["value"]) for row in drawn] == [(0, 10.0), (0, 12), (1, 20)]
    assert drawn[0]["when"] == "2026-11-01 10:00:00 UTC"
    assert drawn[1]["found"] == "12.0 ms"
    assert drawn[1]["engine"] == "ort 1.0"
    assert drawn[1]["file"] == "a ort/1.json"


def test_another_version_of_the_engine_is_another_mark_and_said_below():
    found = history(line("a ort", [1, 2, 3], ["1.0", "1.1", "1.1"]))
    figure = trend.lines(found, found.trends)
    assert [row["shape"] for row in rows(figure)] == ["circle", "diamond", "circle"]
    assert "another version of the engine" in figure.caption
    same = history(line("a ort", [1, 2]))
    assert "version" not in trend.lines(same, same.trends).caption


def test_a_line_has_its_number_at_its_last_profile_and_none_covers_another():
    found = history(line("a ort", [10, 10]), line("b ort", [5, 10]), line("c ort", [1, 1]))
    figure = trend.lines(found, found.trends)
    numbers = {row["number"]: row for row in rows(figure, 2)}
    assert {row["measured"][:10] for row in numbers.values()} == {"2026-11-02"}
    span = look.span([1, 5, 10])
    assert numbers["1"]["value"] == pytest.approx(10)
    assert span.share(numbers["2"]["value"]) - span.share(10) == pytest.approx(trend.APART)
    assert numbers["3"]["value"] == pytest.approx(1)


def test_who_cannot_see_it_is_told_where_each_begins_and_ends():
    found = history(line("a ort", [10, 12]), line("b ort", [20]))
    assert trend.lines(found, found.trends).spec["description"] == (
        "p50 over time: a ort 10.0 to 12.0 ms, 2026-11-01 to 2026-11-02; "
        "b ort 20.0 ms on 2026-11-01"
    )


def test_of_a_day_or_two_the_axis_says_day_and_hour():
    few, many = history(line("a ort", [1, 2])), history(line("a ort", [1, 2, 3]))

    def axis(found):
        return trend.lines(found, found.trends).spec["layer"][0]["encoding"]["x"]["axis"]

    assert axis(few)["format"] == "%b %d %H:%M"
    assert "format" not in axis(many)


def test_more_lines_than_colours_are_a_picture_for_each_bundle():
    few = history(*(line(f"a e{n}", [1]) for n in range(look.COLOURS)))
    assert trend.groups(few) == [("", few.trends)]
    many = history(*few.trends, line("b ort", [1]))
    assert [(name, len(part)) for name, part in trend.groups(many)] == [("a", 8), ("b", 1)]


def test_in_a_picture_alone_hosts_are_named_where_they_differ():
    one = history(line("a ort", [1, 2]))
    two = history(line("a ort", [1, 2]), line("a ort", [3], host="another"))

    def legend(found):
        (drawn,) = trend.picture(found).to_dict()["datasets"].values()
        return [row["profile"] for row in drawn]

    legends = [legend(one), legend(two)]
    assert legends == [
        ["a ort"] * 2,
        ["a ort (a processor)", "a ort (a processor)", "a ort (another)"],
    ]


@pytest.mark.parametrize("log", [False, True])
def test_a_place_on_an_axis_is_found_both_ways(log):
    span = Span(1.0, 100.0, log)
    assert (span.share(1), span.share(100)) == (0, 1)
    assert span.at(0.5) == pytest.approx(10 if log else 50.5)
    assert span.at(span.share(7)) == pytest.approx(7)
